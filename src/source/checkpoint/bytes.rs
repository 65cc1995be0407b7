//! Numbers of one byte: what each of the 256 stands for.

use safetensors::tensor::Dtype;

/// What every byte stands for in a type of eight bits; none for a type that is no such number.
pub fn values(dtype: Dtype) -> Option<[f32; 256]> {
    let value: fn(u8) -> f32 = match dtype {
        Dtype::F8_E4M3 => e4m3,
        Dtype::F8_E5M2 => e5m2,
        Dtype::F8_E8M0 => e8m0,
        Dtype::I8 => |byte| f32::from(byte as i8),
        _ => return None,
    };
    Some(std::array::from_fn(|i| value(i as u8)))
}

/// A sign, four bits of exponent with a bias of 7, three of mantissa; no infinities, and NaN where all but the sign is set
/// (Micikevicius et al. 2022, table 1).
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        (_, _) => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// The upper half of an F16, with its infinities and NaN (the same table).
fn e5m2(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// A power of two: eight bits of exponent with a bias of 127, and NaN where all are set (OCP Microscaling Formats 1.0,
/// section 5.4.1).
fn e8m0(byte: u8) -> f32 {
    if byte == 0xff { f32::NAN } else { 2f32.powi(i32::from(byte) - 127) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_e4m3_is_what_its_bits_say() {
        // The whole positive range, counted up: eight subnormals, then each octave in steps of an eighth of itself.
        let mut wanted: Vec<f32> = (0..8).map(|i| i as f32 / 512.0).collect();
        let mut octave = 1.0 / 64.0;
        while octave <= 256.0 {
            wanted.extend((0..8).map(|i| octave + octave * i as f32 / 8.0));
            octave *= 2.0;
        }
        assert_eq!((wanted.len(), wanted[126]), (128, 448.0));
        for (i, x) in wanted.iter().enumerate().take(127) {
            assert_eq!((e4m3(i as u8), e4m3(i as u8 | 0x80)), (*x, -x), "{i}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn every_byte_of_e5m2_is_what_its_bits_say() {
        // Four subnormals, then each octave in quarters of itself, up to 1.75 · 2^15.
        let mut wanted: Vec<f32> = (0..4).map(|i| i as f32 / 65536.0).collect();
        let mut octave = 1.0 / 16384.0;
        while octave <= 32768.0 {
            wanted.extend((0..4).map(|i| octave + octave * i as f32 / 4.0));
            octave *= 2.0;
        }
        assert_eq!((wanted.len(), wanted[123]), (124, 57344.0));
        for (i, x) in wanted.iter().enumerate() {
            assert_eq!((e5m2(i as u8), e5m2(i as u8 | 0x80)), (*x, -x), "{i}");
        }
        assert_eq!((e5m2(0x7c), e5m2(0xfc)), (f32::INFINITY, f32::NEG_INFINITY));
        assert!([0x7d, 0x7e, 0x7f, 0xff].into_iter().all(|byte| e5m2(byte).is_nan()));
    }

    #[test]
    fn e8m0_counts_powers_of_two() {
        let mut wanted = 2f32.powi(-126) / 2.0;
        for byte in 0..=0xfe {
            assert_eq!(e8m0(byte), wanted, "{byte}");
            wanted *= 2.0;
        }
        assert!(e8m0(0xff).is_nan());
        assert_eq!(values(Dtype::I8).unwrap()[0x80], -128.0);
    }
}
