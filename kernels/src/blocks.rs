//! A product of packed operands, in blocks that stay in the caches (Goto, van de Geijn 2008, section 4).

use crate::memory::unwritten;
use crate::micro::{Element, Micro, Tile};
use crate::pack::{Operand, Out, View, packed, put};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// All rows of an operand, packed in pieces of some depth one behind the other.
pub(crate) struct Packed<E> {
    /// Room for the elements, which begin where their alignment allows. Memory that an allocator has to align it sets to zero by hand,
    /// and on one thread.
    room: Vec<f32>,
    of: PhantomData<E>,
    /// Rows, filled up to whole panels.
    rows: usize,
    /// Elements of all pieces.
    depth: usize,
    /// Elements of each piece but the last.
    piece: usize,
}

impl<E: Element> Packed<E> {
    /// Room for `rows` rows of `columns` numbers.
    pub fn room(micro: Micro<E>, operand: Operand, rows: usize, columns: usize, piece: usize) -> Packed<E> {
        let width = micro.width(operand);
        let room = unwritten(room_for::<E>(packed::<E>(rows, columns, width)));
        Packed { room, of: PhantomData, rows: rows.next_multiple_of(width), depth: columns.div_ceil(E::NUMBERS), piece }
    }

    /// `[piece][panel, depth, width / E::SIDE]`.
    fn elements(&self) -> &[E] {
        // SAFETY: as in `elements_mut`.
        &unsafe { self.room.align_to::<E>() }.1[..self.rows / E::SIDE * self.depth]
    }

    /// The same.
    fn elements_mut(&mut self) -> &mut [E] {
        &mut elements_mut(&mut self.room)[..self.rows / E::SIDE * self.depth]
    }

    /// All rows of a view, packed on all threads.
    pub fn on_all(micro: Micro<E>, operand: Operand, view: View<'_>, piece: usize) -> Packed<E> {
        let mut out = Packed::room(micro, operand, view.rows, view.columns, piece);
        let pieces = out.pieces();
        let whole = (out.rows * piece / E::SIDE).max(1);
        pieces.into_par_iter().zip(out.elements_mut().par_chunks_mut(whole)).for_each(|(at, out)| {
            view.part(0..view.rows, columns_of::<E>(&at, view.columns)).pack_on_all(micro, operand, out);
        });
        out
    }

    /// Packs the rows of a view behind those before `first`.
    ///
    /// # Panics
    /// If `first` is not a multiple of the panels' width.
    pub fn fill(&mut self, micro: Micro<E>, operand: Operand, first: usize, view: View<'_>) {
        assert!(first.is_multiple_of(micro.width(operand)), "rows from {first} on begin inside a panel");
        let rows = first..first + view.rows.next_multiple_of(micro.width(operand));
        for at in self.pieces() {
            let columns = columns_of::<E>(&at, view.columns);
            let range = self.range(&at, rows.clone());
            view.part(0..view.rows, columns).pack(micro, operand, &mut self.elements_mut()[range]);
        }
    }

    /// The depths of all pieces.
    fn pieces(&self) -> Vec<Range<usize>> {
        let end = |from: usize| (from + self.piece).min(self.depth);
        (0..self.depth).step_by(self.piece).map(|from| from..end(from)).collect()
    }

    /// Where some rows of a piece are, from the beginning of a panel to the end of another.
    fn range(&self, depth: &Range<usize>, rows: Range<usize>) -> Range<usize> {
        let at = |row: usize| (self.rows * depth.start + row * depth.len()) / E::SIDE;
        at(rows.start)..at(rows.end)
    }
}

/// Numbers that have room for `count` elements.
pub(crate) fn room_for<E>(count: usize) -> usize {
    (count * size_of::<E>() + align_of::<E>()) / size_of::<f32>()
}

/// The elements that a room for them begins with.
pub(crate) fn elements_mut<E: Element>(room: &mut [f32]) -> &mut [E] {
    // SAFETY: elements are numbers and nothing else, all of whose bits mean something; and whatever is written is some number.
    unsafe { room.align_to_mut::<E>() }.1
}

/// The numbers that some elements hold.
fn columns_of<E: Element>(depth: &Range<usize>, columns: usize) -> Range<usize> {
    depth.start * E::NUMBERS..(depth.end * E::NUMBERS).min(columns)
}

/// `C += A·B`, or `C = A·B` unless `add`, for all columns of the output and those rows of `left` that begin at `first`, on the
/// calling thread. A tile whose first column is beyond `last(its last row)` is left out; rows count from `first`. `tiles`: room, whatever
/// is in it.
pub(crate) fn multiply<E: Element>(
    micro: Micro<E>,
    (left, first): (&Packed<E>, usize),
    right: &Packed<E>,
    add: bool,
    last: impl Fn(usize) -> usize,
    tiles: &mut Vec<Tile>,
    out: &mut Out<'_>,
) {
    let (m, n) = (out.shape().0.next_multiple_of(micro.rows), out.shape().1.next_multiple_of(micro.columns));
    let depth = left.depth;
    if depth == 0 && !add {
        out.clear();
    }
    let high = E::SIZES.rows.next_multiple_of(micro.rows).min(m);
    let wide = E::SIZES.columns.next_multiple_of(micro.columns).min(n);
    // Sums that go on with the next piece lie side by side, whatever lies between the rows of the output: those of a wide one would take
    // each other's places in a cache.
    let count = high / micro.rows * (wide / micro.columns);
    tiles.resize_with(count.max(tiles.len()), Tile::default);
    for (i, j) in (0..m).step_by(high).flat_map(|i| (0..n).step_by(wide).map(move |j| (i, j))) {
        let (rows, columns) = (i..(i + high).min(m), j..(j + wide).min(n));
        // How many tiles from the left are wanted.
        let wanted = |row: usize| {
            (last(row + micro.rows - 1).min(columns.end - 1) + 1).saturating_sub(j).div_ceil(micro.columns)
        };
        let lines = || rows.clone().step_by(micro.rows);
        for at in left.pieces() {
            let left = &left.elements()[left.range(&at, first + rows.start..first + rows.end)];
            let right = &right.elements()[right.range(&at, columns.clone())];
            let panel = |width: usize| at.len() * width / E::SIDE;
            let lefts = left.chunks_exact(panel(micro.rows));
            for ((row, left), tiles) in lines().zip(lefts).zip(tiles.chunks_exact_mut(wide / micro.columns)) {
                let tiles = &mut tiles[..wanted(row)];
                micro.panels(left, &right[..tiles.len() * panel(micro.columns)], at.start > 0, tiles);
                // What is complete goes to its place while it is in the nearest cache.
                if at.end == depth {
                    for (column, tile) in columns.clone().step_by(micro.columns).zip(&*tiles) {
                        put(out, (row, column), tile, micro.columns, 1.0, add);
                    }
                }
            }
        }
    }
}
