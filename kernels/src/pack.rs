//! Operands of a matrix product as its innermost loop reads them, and the output that it writes.

use crate::dispatch::kernel;
use crate::micro::{Element, Line, Micro, Tile};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// A read-only matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// From a row to the next, and from a column to the next; one of them is one.
    pub(crate) steps: (usize, usize),
}

impl<'a> View<'a> {
    /// `data` as `[rows, columns]` with rows `stride` apart.
    ///
    /// # Panics
    /// If the matrix does not lie inside `data`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(columns <= stride || rows <= 1, "rows that overlap");
        View { data: &data[..used(rows, columns, stride)], rows, columns, steps: (stride, 1) }
    }

    /// The transposed matrix.
    #[must_use]
    pub fn t(self) -> Self {
        View { rows: self.columns, columns: self.rows, steps: (self.steps.1, self.steps.0), ..self }
    }

    /// Whether the numbers of a row lie side by side, and not those of a column.
    pub(crate) fn has_rows(self) -> bool {
        self.steps.0 != 1
    }

    /// One of its rows.
    ///
    /// # Panics
    /// If the numbers of a row do not lie side by side.
    pub(crate) fn row(self, i: usize) -> &'a [f32] {
        assert!(i < self.rows && self.steps.1 == 1, "a row of a matrix");
        &self.data[i * self.steps.0..][..self.columns]
    }

    /// Some rows and some columns of it.
    pub(crate) fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "a part of a matrix");
        let empty = rows.is_empty() || columns.is_empty();
        let first = if empty { self.data.len() } else { rows.start * self.steps.0 + columns.start * self.steps.1 };
        View { data: &self.data[first..], rows: rows.len(), columns: columns.len(), ..self }
    }

    /// Its rows in panels as `micro` reads those of an operand, the last one filled up with zeros, as are columns where an element holds
    /// several: what stands in `out` afterwards is `[⌈rows / width⌉, ⌈columns / E::NUMBERS⌉, width / E::SIDE]`.
    pub(crate) fn pack<E: Element>(self, micro: Micro<E>, operand: Operand, out: &mut [E]) {
        let width = micro.width(operand);
        let panel = packed::<E>(width, self.columns, width).max(1);
        let out = &mut out[..packed::<E>(self.rows, self.columns, width)];
        let part = |p: usize, columns: Range<usize>| self.part(p * width..((p + 1) * width).min(self.rows), columns);
        if !self.has_rows() {
            // Panel by panel, memory would be read in small pieces far from each other; line by line, written in such.
            let deep = width / E::SIDE;
            for j in (0..panel / deep).step_by(LINES) {
                let lines = LINES.min(panel / deep - j);
                let columns = j * E::NUMBERS..((j + lines) * E::NUMBERS).min(self.columns);
                for (p, out) in out.chunks_exact_mut(panel).enumerate() {
                    E::pack(micro.isa, operand, part(p, columns.clone()), width, &mut out[j * deep..][..lines * deep]);
                }
            }
            return;
        }
        for (p, out) in out.chunks_mut(panel).enumerate() {
            E::pack(micro.isa, operand, part(p, 0..self.columns), width, out);
        }
    }

    /// The same on all threads.
    pub(crate) fn pack_on_all<E: Element>(self, micro: Micro<E>, operand: Operand, out: &mut [E]) {
        let width = micro.width(operand);
        let panel = packed::<E>(width, self.columns, width).max(1);
        out.par_chunks_mut(panel).enumerate().with_min_len(8).for_each(|(p, out)| {
            let part = self.part(p * width..((p + 1) * width).min(self.rows), 0..self.columns);
            E::pack(micro.isa, operand, part, width, out);
        });
    }
}

/// Which of the two a matrix is in a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    /// The one whose rows are those of the output.
    Left,
    /// The one whose columns are those of the output, given as its transposed.
    Right,
}

/// [`Element::pack`] where all that has the same depth lies in one line. `out`: `[⌈columns / E::NUMBERS⌉, width]`.
pub(crate) fn lines<E: Line>(part: View<'_>, width: usize, out: &mut [E]) {
    let rows = part.rows;
    if !part.has_rows() {
        let column = |j: usize| {
            let from = j * part.steps.1;
            if j < part.columns { &part.data[from..from + rows] } else { &ZEROS[..rows] }
        };
        for (j, out) in out.chunks_exact_mut(width).enumerate() {
            // One of these is not looked at where an element holds one number.
            E::columns([0, E::NUMBERS - 1].map(|i| column(j * E::NUMBERS + i)), &mut out[..rows]);
            out[rows..].fill(E::default());
        }
        return;
    }
    if rows < width {
        out.fill(E::default());
    }
    // A few columns of all rows at once, so that what is written stays in the nearest cache.
    let side = E::AT_ONCE * E::NUMBERS;
    for (at, out) in (0..part.columns).step_by(side).zip(out.chunks_mut(E::AT_ONCE * width)) {
        let count = side.min(part.columns - at);
        for i in 0..rows {
            let from = i * part.steps.0 + at;
            E::row(&part.data[from..from + count], &mut out[i..], width);
        }
    }
}

/// Lines of a panel that are written before those of the next one.
const LINES: usize = 8;

/// What stands for a column that is not there; at least as wide as a panel.
const ZEROS: [f32; 64] = [0.0; 64];

/// Elements of a matrix's panels.
pub(crate) fn packed<E: Element>(rows: usize, columns: usize, width: usize) -> usize {
    rows.next_multiple_of(width) / E::SIDE * columns.div_ceil(E::NUMBERS)
}

/// Numbers from a matrix's first to its last.
fn used(rows: usize, columns: usize, stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns }
}

/// Some columns of all rows of an output, which only this value may write to.
pub(crate) struct Out<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for numbers that are borrowed mutably, each by one value only, and numbers may go to other threads.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// `data` as `[rows, columns]` with rows `stride` apart.
    ///
    /// # Panics
    /// If the matrix does not lie inside `data`.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Out<'a> {
        assert!(columns <= stride || rows <= 1, "rows that overlap");
        assert!(used(rows, columns, stride) <= data.len(), "an output out of range");
        Out { first: data.as_mut_ptr(), rows, columns, stride, of: PhantomData }
    }

    /// The same, cut into strips of `width` columns; the last may be narrower.
    pub fn strips(self, width: usize) -> Vec<Out<'a>> {
        let strip = |at: usize| Out {
            // SAFETY: `at` is below the columns, so that this is a number of the first row. Where there are no rows it is
            // not used.
            first: if self.rows == 0 { self.first } else { unsafe { self.first.add(at) } },
            columns: width.min(self.columns - at),
            ..self
        };
        (0..self.columns).step_by(width).map(strip).collect()
    }

    /// A few numbers of a row.
    #[inline(always)]
    pub fn row(&mut self, i: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(i < self.rows && columns.start <= columns.end && columns.end <= self.columns, "an output's row");
        // SAFETY: the line above, and what `new` has seen: all of it lies inside the data that is borrowed. No other strip has
        // these columns, and this one is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(i * self.stride + columns.start), columns.len()) }
    }

    /// Zero everywhere.
    pub fn clear(&mut self) {
        (0..self.rows).for_each(|i| self.row(i, 0..self.columns).fill(0.0));
    }

    /// How many rows and columns it has.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }
}

kernel! {
    /// Puts a tile, `[_, width]`, times `alpha` where it belongs, as far as it lies inside; or adds it to what is there.
    pub fn put / put_on(out: &mut Out<'_>, at: (usize, usize), tile: &Tile, width: usize, alpha: f32, add: bool) {
        let columns = at.1..(at.1 + width).min(out.columns);
        for (i, tile) in (at.0..out.rows).zip(tile.0.chunks_exact(width)) {
            let row = out.row(i, columns.clone()).iter_mut().zip(tile);
            match add {
                true => row.for_each(|(to, from)| *to += alpha * from),
                false => row.for_each(|(to, from)| *to = alpha * from),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::micro::Pair;

    #[test]
    fn panels_hold_every_number_once_and_zeros_behind_the_last_row() {
        panels::<f32>();
        panels::<Pair>();
    }

    fn panels<E: Line + PartialEq + std::fmt::Debug>() {
        let shapes = [(1, 1), (4, 3), (5, 40), (14, 17), (33, 2), (3, 65)];
        let packings = Isa::available().into_iter().map(Micro::<E>::on);
        let packings = packings.flat_map(|micro| [Operand::Left, Operand::Right].map(|operand| (micro, operand)));
        for ((micro, operand), (rows, columns)) in packings.flat_map(|how| shapes.map(|shape| (how, shape))) {
            let width = micro.width(operand);
            let stride = columns + 3;
            let data: Vec<f32> = (0..rows * stride).map(|i| i as f32 + 1.0).collect();
            let view = View::new(&data, rows, columns, stride);
            let turned: Vec<f32> = (0..columns * rows).map(|at| data[at % rows * stride + at / rows]).collect();
            for view in [view, View::new(&turned, columns, rows, rows).t()] {
                let nonsense = E::of([7.5; 2]);
                let mut out = vec![nonsense; packed::<E>(rows, columns, width)];
                view.pack(micro, operand, &mut out);
                let deep = columns.div_ceil(E::NUMBERS);
                for (at, got) in out.iter().enumerate() {
                    let (row, first) = (at / (deep * width) * width + at % width, at / width % deep * E::NUMBERS);
                    let number =
                        |column| if row < rows && column < columns { data[row * stride + column] } else { 0.0 };
                    let want = E::of([number(first), number(first + E::NUMBERS - 1)]);
                    assert_eq!(*got, want, "{rows} x {columns} in panels of {width}, at {row} {first}");
                }
            }
        }
    }

    #[test]
    fn a_tile_is_cut_at_the_edges_of_its_strip() {
        let mut data = vec![0.5; 3 * 7];
        let mut tile = Tile::default();
        (0..14 * 32).for_each(|i| tile.0[i] = i as f32);
        for (s, mut strip) in Out::new(&mut data, 3, 6, 7).strips(4).into_iter().enumerate() {
            put(&mut strip, (1, 1), &tile, 4, 2.0, s == 0);
        }
        // Rows 1 and 2 of the strips 0..4 (added to) and 4..6 (replaced) of rows of 7.
        let rows = [[0.5; 7], [0.5, 0.5, 2.5, 4.5, 0.5, 0.0, 0.5], [0.5, 8.5, 10.5, 12.5, 0.5, 8.0, 0.5]];
        assert_eq!(data, rows.concat());
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_view_beyond_its_slice_is_refused() {
        let _ = View::new(&[0.0; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn an_output_beyond_its_slice_is_refused() {
        let _ = Out::new(&mut [0.0; 5], 2, 3, 3);
    }
}
