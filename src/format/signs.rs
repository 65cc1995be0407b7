//! The signs of the IQ types, which are kept apart from the levels: eight bits for eight columns, set for a minus.

/// Completes seven signs to eight: among eight the number of minuses is even.
pub fn even(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// The 32 bits in which IQ2_XXS and IQ3_XXS keep four times seven signs and, on top, a scale of four bits.
///
/// `bytes`: `[4]`. The scale is `½ + s`.
pub fn signs_and_scale(bytes: &[u8]) -> ([u8; 4], f32) {
    let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (std::array::from_fn(|l| even(word >> (7 * l))), 0.5 + (word >> 28) as f32)
}

/// Adds the first seven of eight signs to such bits, as the `l`-th of four.
pub fn put_signs(bytes: &mut [u8], l: usize, signs: u8) {
    let word = u32::from(signs & 127) << (7 * l);
    bytes.iter_mut().zip(word.to_le_bytes()).for_each(|(byte, bits)| *byte |= bits);
}

/// Writes `±d·level` for an entry of a codebook; bit `j` of `signs` belongs to column `j`.
pub fn put(d: f32, levels: &[i8], signs: u8, out: &mut [f32]) {
    for (j, (x, &level)) in out.iter_mut().zip(levels).enumerate() {
        let d = if signs >> j & 1 == 0 { d } else { -d };
        *x = d * f32::from(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eighth_sign_makes_the_minuses_even() {
        for seven in 0..128 {
            let eight = even(seven);
            assert_eq!((u32::from(eight & 127), eight.count_ones() % 2), (seven, 0));
            assert_eq!(even(seven | 128), eight, "what lies above the seven is ignored");
        }
    }
}
