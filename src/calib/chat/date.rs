//! The day on which every template runs: 26 July 2024, at midnight.
//!
//! With the day of the calendar the same input would give other bytes tomorrow. This one is what the templates of Llama 3 write where
//! there is no clock.

/// What each of `strftime`'s directives gives on that day.
#[rustfmt::skip]
const DIRECTIVES: [(char, &str); 41] = [
    ('a', "Fri"), ('A', "Friday"), ('b', "Jul"), ('B', "July"), ('c', "Fri Jul 26 00:00:00 2024"), ('C', "20"),
    ('d', "26"), ('D', "07/26/24"), ('e', "26"), ('F', "2024-07-26"), ('g', "24"), ('G', "2024"), ('h', "Jul"),
    ('H', "00"), ('I', "12"), ('j', "208"), ('k', " 0"), ('l', "12"), ('m', "07"), ('M', "00"), ('n', "\n"),
    ('p', "AM"), ('P', "am"), ('r', "12:00:00 AM"), ('R', "00:00"), ('S', "00"), ('t', "\t"), ('T', "00:00:00"),
    ('u', "5"), ('U', "29"), ('V', "30"), ('w', "5"), ('W', "30"), ('x', "07/26/24"), ('X', "00:00:00"), ('y', "24"),
    ('Y', "2024"), ('f', "000000"), ('z', ""), ('Z', ""), ('%', "%"),
];

/// Python's `strftime` on that day; what it does not know stays as it is.
pub(super) fn today(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = rest.next();
        // Without the zero in front, or with a space instead.
        let (bare, directive) =
            if matches!(directive, Some('-' | '_')) { (directive, rest.next()) } else { (None, directive) };
        let known = DIRECTIVES.iter().find(|(letter, _)| Some(*letter) == directive);
        match (known, bare) {
            (Some((_, text)), Some('-')) => out.push_str(text.strip_prefix('0').unwrap_or(text)),
            (Some((_, text)), _) => out.push_str(text),
            (None, _) => out.extend(['%'].into_iter().chain(bare).chain(directive)),
        }
    }
    out
}
