//! Codes of other quantizers in GGUF's blocks, without rounding: which types hold `(q − zero)·scale` exactly, and how.

use super::{Encoding, Type};
use crate::grid::{Codes, Grid, LANES, Levels, RowSteps, Steps, Supers};
use half::f16;
use rayon::prelude::*;

/// Some columns of a row that share a scale: `(q − zero)·scale` for whole numbers `q` from zero to `top`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// The code that stands for zero.
    pub zero: i16,
    /// The distance of neighbouring values.
    pub scale: f32,
    /// The largest code.
    pub top: u8,
}

/// How a block holds a [`Line`]: the code `q` becomes `q + shift`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fit {
    steps: RowSteps,
    shift: i16,
}

impl Line {
    /// Why a type's blocks do not hold every value of the line exactly; none if they do.
    pub fn misfit(&self, kind: Type) -> Option<String> {
        match kind.encoding() {
            Encoding::Grid(grid) => self.fit(kind, grid).err(),
            // Single precision holds any product of a half-precision number and a whole one this small.
            Encoding::Each(_) if kind.name() == "F32" => None,
            _ => Some(format!("{} has too few bits for a code times a scale", kind.name())),
        }
    }

    fn fit(&self, kind: Type, grid: &dyn Grid) -> Result<Fit, String> {
        let Line { zero, scale, top } = *self;
        let (name, freedom, shape) = (kind.name(), grid.freedom(), grid.shape());
        let (least, most) = (-zero, i16::from(top) - zero);
        let (Levels::Uniform { lo, hi }, Supers::Half, (1.0, 1.0), true) =
            (grid.levels(), freedom.supers, freedom.scales, shape.width == shape.group && !freedom.one_super)
        else {
            return Err(format!("{name} has other scales"));
        };
        let (lo, hi) = (i16::from(lo), i16::from(hi));
        if !is_half(scale) {
            return Err(format!("its scale {scale:e} is no number in half precision"));
        }
        if freedom.mins == (0.0, 0.0) {
            if least < lo || most > hi {
                return Err(format!("its codes are {least} to {most} times a scale, and those of {name} {lo} to {hi}"));
            }
            return Ok(Fit { steps: RowSteps::plain(scale), shift: -zero });
        }
        if i16::from(top) > hi - lo {
            return Err(format!("it has {} levels, and {name} {}", i16::from(top) + 1, hi - lo + 1));
        }
        // The lower the code of the least value may be, the more minima there are to choose from.
        let minimum = |shift: i16| -f32::from(zero + shift - lo) * scale;
        match (lo..=hi - i16::from(top)).find(|&shift| is_half(minimum(shift))) {
            Some(shift) => Ok(Fit { steps: RowSteps::line(scale, minimum(shift)), shift }),
            None => Err(format!("its minimum −{zero}·{scale:e} is no number in half precision")),
        }
    }
}

fn is_half(x: f32) -> bool {
    f16::from_f32(x).to_f32() == x
}

/// The blocks of rows whose codes are known. `codes`: `[rows, columns]`; `line`: what row and block share.
///
/// # Errors
/// A line that the type does not hold, by its row and block.
///
/// # Panics
/// If the type is no grid.
pub fn blocks(
    kind: Type,
    codes: &[u8],
    columns: usize,
    line: impl Fn(usize, usize) -> Line + Sync,
) -> Result<Vec<u8>, (usize, usize, String)> {
    let Encoding::Grid(grid) = kind.encoding() else { panic!("{} has no codes", kind.name()) };
    let (width, bytes) = (grid.width(), grid.bytes());
    let row_bytes = columns / width * bytes;
    let mut out = vec![0; codes.len() / columns * row_bytes];
    let lanes = out.par_chunks_mut(LANES * row_bytes).zip(codes.par_chunks(LANES * columns)).enumerate();
    lanes.try_for_each(|(part, (out, codes))| {
        let mut block: Vec<Codes> = vec![[0; LANES]; width];
        let mut stored = vec![0; LANES * bytes];
        for b in 0..columns / width {
            let mut steps = Steps::plain(crate::grid::F::ZERO);
            for (l, row) in codes.chunks(columns).enumerate() {
                let row_number = part * LANES + l;
                let fit = line(row_number, b).fit(kind, grid).map_err(|why| (row_number, b, why))?;
                steps.set_lane(l, &fit.steps);
                for (codes, &q) in block.iter_mut().zip(&row[b * width..]) {
                    // Within the levels, as they hold the whole line.
                    codes[l] = (i16::from(q) + fit.shift) as i8;
                }
            }
            grid.store(&steps, &block, &mut stored);
            for (row, stored) in out.chunks_mut(row_bytes).zip(stored.chunks(bytes)) {
                row[b * bytes..(b + 1) * bytes].copy_from_slice(stored);
            }
        }
        Ok(())
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::by_name;
    use super::*;

    const SIMPLE: [&str; 5] = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];

    fn kind(name: &str) -> Type {
        by_name(name).unwrap()
    }

    #[test]
    fn types_that_hold_a_line_give_every_value_back_to_the_bit() {
        let mut held = [0; SIMPLE.len()];
        for zero in 0..=16 {
            for scale in [0.0123f32, 3e-6, 1.0, 0.25, 7.7].map(|x| f16::from_f32(x).to_f32()) {
                let line = Line { zero, scale, top: 15 };
                let codes: Vec<u8> = (0..19 * 64).map(|i| (i * 7 % 16) as u8).collect();
                let wanted: Vec<f32> = codes.iter().map(|&q| (f32::from(q) - f32::from(zero)) * scale).collect();
                for (name, held) in SIMPLE.iter().zip(&mut held) {
                    match blocks(kind(name), &codes, 64, |_, _| line) {
                        Ok(blocks) => {
                            assert!(line.misfit(kind(name)).is_none());
                            assert_eq!(kind(name).decode_all(&blocks), wanted, "{name} {line:?}");
                            *held += 1;
                        }
                        Err((row, block, why)) => {
                            assert_eq!((row % 16, block, line.misfit(kind(name))), (0, 0, Some(why)));
                        }
                    }
                }
            }
        }
        // Five scales each: Q4_0 holds one zero point, the five-bit types and Q8_0 all seventeen.
        assert_eq!((held[0], held[2], held[3], held[4]), (5, 85, 85, 85));
        assert!((40..85).contains(&held[1]), "{held:?}");
    }

    #[test]
    fn what_cannot_be_held_is_refused_with_the_reason() {
        let line = Line { zero: 7, scale: f16::from_f32(0.0123).to_f32(), top: 15 };
        for (line, name, told) in [
            (line, "Q4_0", "-7 to 8 times a scale, and those of Q4_0 -8 to 7"),
            (line, "Q4_1", "its minimum −7·"),
            (Line { scale: 0.0123, ..line }, "Q5_0", "its scale 1.23e-2 is no number in half precision"),
            (Line { scale: 1e6, ..line }, "Q8_0", "its scale 1e6"),
            (Line { zero: 128, top: 255, ..line }, "Q4_1", "256 levels, and Q4_1 16"),
            (line, "Q4_K", "Q4_K has other scales"),
            (line, "MXFP4", "MXFP4 has other scales"),
            (line, "BF16", "BF16 has too few bits"),
        ] {
            let why = line.misfit(kind(name)).expect("a reason");
            assert!(why.contains(told), "{why}");
        }
        assert_eq!(line.misfit(kind("F32")), None);
        let some = |row: usize, block| if (row, block) == (17, 1) { line } else { Line { zero: 8, ..line } };
        let (row, block, why) = blocks(kind("Q4_0"), &[3; 20 * 64], 64, some).unwrap_err();
        assert_eq!((row, block), (17, 1), "{why}");
    }
}
