//! What a CPU can do with INT8, which decides whether a quantized model is faster at all.

/// A kind of CPU, by its fastest way to multiply bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// x86 with AMX: tiles of bytes, and VNNI.
    Amx,
    /// x86 with VNNI: four products of bytes are added in 32 bits.
    Vnni,
    /// x86 without: two products are added in 16 bits and cut off.
    X86,
    /// ARM with the dot product instructions or better.
    ArmDot,
    /// ARM without.
    Arm,
    /// Anything else.
    Other,
}

impl Cpu {
    /// The CPU that this runs on.
    pub fn this() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if has_amx() {
                Self::Amx
            } else if is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni") {
                Self::Vnni
            } else {
                Self::X86
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if std::arch::is_aarch64_feature_detected!("dotprod") { Self::ArmDot } else { Self::Arm }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self::Other
    }

    /// How messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "x86 with AMX",
            Self::Vnni => "x86 with VNNI",
            Self::X86 => "x86 without VNNI",
            Self::ArmDot => "ARM with dot product",
            Self::Arm => "ARM without dot product",
            Self::Other => "neither x86 nor ARM",
        }
    }

    /// Whether it multiplies bytes much faster than floats.
    pub fn is_fast(self) -> bool {
        matches!(self, Self::Amx | Self::Vnni | Self::ArmDot)
    }

    /// Whether weights should have 7 bits, so that sums in 16 bits are not cut off.
    pub fn needs_reduced_range(self) -> bool {
        self == Self::X86
    }
}

/// The compiler cannot ask the CPU about AMX yet; Linux tells, and nothing else runs on such CPUs in numbers.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = told.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "amx_int8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slow_x86_needs_a_reduced_range() {
        for cpu in [Cpu::Amx, Cpu::Vnni, Cpu::X86, Cpu::ArmDot, Cpu::Arm, Cpu::Other] {
            assert!(!(cpu.is_fast() && cpu.needs_reduced_range()), "{}", cpu.name());
        }
        assert!(Cpu::X86.needs_reduced_range() && !Cpu::Arm.needs_reduced_range());
        assert_eq!(Cpu::this() == Cpu::Other, cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))));
    }
}
