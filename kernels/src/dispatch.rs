//! One source, several instruction sets, chosen at run time.

use std::sync::OnceLock;

/// An instruction set that the lane kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every CPU of the target has: the reference that the others are tested against.
    Baseline,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with products of bfloat16 pairs, for what may be rounded to such.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same with products of matrices of such pairs (AMX), where the system lets this process have their registers.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// NEON, which every such processor has; but for matrix products the same as the baseline.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The same with products of bfloat16 pairs.
    #[cfg(target_arch = "aarch64")]
    NeonBf16,
}

impl Isa {
    /// Every instruction set that this machine has, slowest first.
    pub fn available() -> Vec<Isa> {
        #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_mut))]
        let mut sets = vec![Isa::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 {
                sets.push(Isa::Avx2);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                sets.push(Isa::Avx512);
                if is_x86_feature_detected!("avx512bf16") {
                    sets.push(Isa::Avx512Bf16);
                    if crate::amx::allowed() {
                        sets.push(Isa::Amx);
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            sets.push(Isa::Neon);
            if std::arch::is_aarch64_feature_detected!("bf16") {
                sets.push(Isa::NeonBf16);
            }
        }
        sets
    }

    /// The fastest instruction set of this machine. It does not depend on measurements, which might tell one run from another.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let worth = |isa: &&Isa| pays(**isa);
            *Isa::available().iter().rfind(worth).expect("the baseline is always there")
        })
    }
}

/// Whether it is faster than what comes before it. Processors of Intel multiply pairs of bfloat16 no faster than numbers of single
/// precision (an Emerald Rapids: 80 to 98 GFLOP/s a thread, against 126), but for those with AMX (3100); those of AMD twice as fast (a
/// Genoa: 230 against 116). ARM's was never measured here.
fn pays(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => {
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        }
        _ => true,
    }
}

/// Defines a kernel once and compiles it for every [`Isa`]: `name(args)` runs on the best one, `name_on(isa, args)` on a
/// given one, which has to be available. `_ / name_on` defines the second alone.
macro_rules! kernel {
    ($(#[$meta:meta])* pub fn $name:ident / $on:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            $on($crate::dispatch::Isa::best(), $($arg),*)
        }

        $crate::dispatch::kernel! {
            /// The same on a given instruction set.
            ///
            /// # Panics
            /// If this machine does not have it.
            pub fn _ / $on($($arg: $ty),*) $(-> $ret)? $body
        }
    };
    ($(#[$meta:meta])* pub fn _ / $on:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub fn $on(isa: $crate::dispatch::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            match isa {
                $crate::dispatch::Isa::Baseline => body($($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::dispatch::Isa::Neon | $crate::dispatch::Isa::NeonBf16 => body($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::dispatch::Isa::Avx2 => {
                    assert!(isa == $crate::dispatch::Isa::best() || $crate::dispatch::Isa::available().contains(&isa));
                    // SAFETY: the line above saw that this CPU has the features.
                    unsafe { avx2($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::dispatch::Isa::Avx512 | $crate::dispatch::Isa::Avx512Bf16 | $crate::dispatch::Isa::Amx => {
                    assert!(isa == $crate::dispatch::Isa::best() || $crate::dispatch::Isa::available().contains(&isa));
                    // SAFETY: the line above saw that this CPU has the features.
                    unsafe { avx512($($arg),*) }
                }
            }
        }
    };
}
pub(crate) use kernel;
