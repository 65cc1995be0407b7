//! The innermost loop of a matrix product: a tile of the output in registers (Goto, van de Geijn 2008, "Anatomy of
//! High-Performance Matrix Multiplication", section 5; the packing is that of BLIS).

use crate::Isa;
use std::sync::OnceLock;

/// Numbers of the largest tile.
const MOST: usize = 14 * 32;

/// What a tile adds up to: `[rows, columns]` of its [`Micro`].
#[repr(align(64))]
pub(crate) struct Tile(pub [f32; MOST]);

impl Default for Tile {
    fn default() -> Tile {
        Tile([0.0; MOST])
    }
}

/// A size of tiles, and the kernel that computes them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Micro {
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    isa: Isa,
}

impl Micro {
    /// That of the fastest instruction set of this machine.
    pub fn best() -> Micro {
        static BEST: OnceLock<Micro> = OnceLock::new();
        *BEST.get_or_init(|| Micro::on(Isa::best()))
    }

    /// That of an instruction set.
    ///
    /// # Panics
    /// If this machine does not have it.
    pub fn on(isa: Isa) -> Micro {
        assert!(Isa::available().contains(&isa), "this machine has no {isa:?}");
        let (rows, columns) = match isa {
            Isa::Baseline => (4, 16),
            // Accumulators, one row of B, and one number of A fill sixteen and thirty-two registers.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (6, 16),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (14, 32),
        };
        Micro { rows, columns, isa }
    }

    /// `tile = Σ_p a_p·b_pᵀ`. `a`: `[depth, rows]`; `b`: `[depth, columns]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    #[inline]
    pub fn run(self, a: &[f32], b: &[f32], tile: &mut Tile) {
        assert_eq!(a.len() / self.rows, b.len() / self.columns, "depth of a tile");
        match self.isa {
            Isa::Baseline => baseline(a, b, tile),
            // SAFETY: a Micro is only made for an instruction set that this machine has.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::avx2(a, b, tile) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::avx512(a, b, tile) },
        }
    }
}

fn baseline(a: &[f32], b: &[f32], tile: &mut Tile) {
    let mut c = [[0.0f32; 16]; 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(16)) {
        for (c, &a) in c.iter_mut().zip(a) {
            // Without a fused instruction a fused product would be a call.
            #[cfg(target_arch = "x86_64")]
            c.iter_mut().zip(b).for_each(|(c, &b)| *c += a * b);
            #[cfg(not(target_arch = "x86_64"))]
            c.iter_mut().zip(b).for_each(|(c, &b)| *c = a.mul_add(b, *c));
        }
    }
    tile.0[..64].chunks_exact_mut(16).zip(&c).for_each(|(to, c)| to.copy_from_slice(c));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Tile;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(a: &[f32], b: &[f32], tile: &mut Tile) {
        let mut c = [[_mm256_setzero_ps(); 2]; 6];
        for (a, b) in a.chunks_exact(6).zip(b.chunks_exact(16)) {
            // SAFETY: `b` has sixteen numbers.
            let b = unsafe { [_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))] };
            for i in 0..6 {
                let a = _mm256_set1_ps(a[i]);
                c[i][0] = _mm256_fmadd_ps(a, b[0], c[i][0]);
                c[i][1] = _mm256_fmadd_ps(a, b[1], c[i][1]);
            }
        }
        for (to, c) in tile.0[..96].chunks_exact_mut(16).zip(c) {
            // SAFETY: `to` has sixteen numbers.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), c[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), c[1]);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub fn avx512(a: &[f32], b: &[f32], tile: &mut Tile) {
        let mut c = [[_mm512_setzero_ps(); 2]; 14];
        for (a, b) in a.chunks_exact(14).zip(b.chunks_exact(32)) {
            // SAFETY: `b` has thirty-two numbers.
            let b = unsafe { [_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))] };
            for i in 0..14 {
                let a = _mm512_set1_ps(a[i]);
                c[i][0] = _mm512_fmadd_ps(a, b[0], c[i][0]);
                c[i][1] = _mm512_fmadd_ps(a, b[1], c[i][1]);
            }
        }
        for (to, c) in tile.0.chunks_exact_mut(32).zip(c) {
            // SAFETY: `to` has thirty-two numbers.
            unsafe {
                _mm512_storeu_ps(to.as_mut_ptr(), c[0]);
                _mm512_storeu_ps(to.as_mut_ptr().add(16), c[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_gives_the_sums_it_stands_for() {
        for isa in Isa::available() {
            let micro = Micro::on(isa);
            for depth in [0, 1, 2, 7, 64] {
                let numbers = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
                let (a, b) = (numbers(depth * micro.rows, 0.7), numbers(depth * micro.columns, 0.3));
                let mut tile = Tile([f32::NAN; MOST]);
                micro.run(&a, &b, &mut tile);
                for i in 0..micro.rows {
                    for j in 0..micro.columns {
                        let product = |p: usize| f64::from(a[p * micro.rows + i]) * f64::from(b[p * micro.columns + j]);
                        let want: f64 = (0..depth).map(product).sum();
                        let got = f64::from(tile.0[i * micro.columns + j]);
                        assert!((got - want).abs() < 1e-5, "{isa:?} of depth {depth} at {i} {j}: {got} and {want}");
                    }
                }
            }
        }
    }
}
