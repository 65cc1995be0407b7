//! How a scan is divided among threads: by windows and by heads.

use crate::pack::Out;

/// Columns of the states that one task carries along, if one head has no more: what stays in the second cache.
const WIDE: usize = 512;

/// Some heads of one window that share their keys, and with them the scores of their chunks.
pub struct Task<'a> {
    /// Which window.
    pub window: usize,
    /// Which head of keys.
    pub key: usize,
    /// At least one.
    pub heads: Vec<Head<'a>>,
}

/// One head with values of its own.
pub struct Head<'a> {
    /// Which one.
    pub index: usize,
    /// Its columns of the window's output.
    pub out: Out<'a>,
    /// The state that it goes on from, if it does not begin afresh.
    pub state: Option<&'a mut [f32]>,
}

/// How many heads, each of `width` columns, one task takes.
pub fn at_once(width: usize) -> usize {
    (WIDE / width).max(1)
}

/// One task for some heads of one window. `out`: `[windows, positions, heads, width]`; `state`: `[heads, _]`, of one window; `key_of`:
/// which of `keys` heads of keys a head uses.
pub fn tasks<'a>(
    out: &'a mut [f32],
    (positions, heads, width): (usize, usize, usize),
    state: Option<&'a mut [f32]>,
    keys: usize,
    key_of: impl Fn(usize) -> usize,
) -> Vec<Task<'a>> {
    let mut states = state.into_iter().flat_map(|state| state.chunks_exact_mut(state.len() / heads));
    let mut tasks = Vec::new();
    for (window, out) in out.chunks_exact_mut(positions * heads * width).enumerate() {
        let mut sharing: Vec<Vec<Head<'a>>> = (0..keys).map(|_| Vec::new()).collect();
        let columns = Out::new(out, positions, heads * width, heads * width).strips(width);
        for (index, out) in columns.into_iter().enumerate() {
            sharing[key_of(index)].push(Head { index, out, state: states.next() });
        }
        for (key, mut heads) in sharing.into_iter().enumerate() {
            while !heads.is_empty() {
                let rest = heads.split_off(at_once(width).min(heads.len()));
                tasks.push(Task { window, key, heads: std::mem::replace(&mut heads, rest) });
            }
        }
    }
    tasks
}
