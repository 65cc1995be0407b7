//! What a graph asks of its inputs, and whether a file has it.

use super::{Column, Entry, Header};
use crate::int8::onnx::shape::{Dim, shown};
use std::collections::HashMap;

/// What the graph asks of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Floating-point numbers rather than integers.
    pub float: bool,
    /// The axes where the graph knows them, the batch first.
    pub shape: Option<Vec<Dim>>,
}

impl InputSpec {
    /// As people write it: `'image' (float [batch, 3, 224, 224])`.
    pub(super) fn describe(&self) -> String {
        let kind = if self.float { "float" } else { "integer" };
        match &self.shape {
            None => format!("'{}' ({kind})", self.name),
            Some(shape) => format!("'{}' ({kind} {})", self.name, shown(shape)),
        }
    }

    /// The first axis, where there is one.
    fn first(&self) -> Option<&Dim> {
        self.shape.as_ref()?.first()
    }

    /// Whether an array has this shape, its first axis included.
    fn fits(&self, given: &[usize]) -> bool {
        let size = |(dim, &n): (&Dim, &usize)| dim.fixed().is_none_or(|wanted| wanted == n);
        self.shape.as_ref().is_none_or(|wanted| wanted.len() == given.len() && wanted.iter().zip(given).all(size))
    }
}

/// How the arrays of a file give an input for each sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    /// The first axis counts rows, and the input has that axis, too.
    Rows,
    /// The first axis counts samples, and the input has no such axis.
    Stacked,
    /// Every sample gets all of it.
    Whole,
}

/// How many rows one run of the graph takes, and for each input whether its first axis counts them: a number has no axis, and tables
/// stand beside a batch.
pub(super) fn batches(inputs: &[InputSpec]) -> (usize, Vec<bool>) {
    let unknown = Dim::Dynamic(String::new());
    let first = |input: &InputSpec| match &input.shape {
        None => Some(unknown.clone()),
        Some(dims) => dims.first().cloned(),
    };
    let firsts: Vec<Option<Dim>> = inputs.iter().map(first).collect();
    let least = firsts.iter().flatten().filter_map(Dim::fixed).min();
    let open = firsts.iter().flatten().find(|dim| dim.fixed().is_none());
    // Beside an open batch, a fixed first axis is another one, unless it is 1.
    let batch = if open.is_some() { 1 } else { least.unwrap_or(1).max(1) };
    let inner = |name: &str| {
        let behind = inputs.iter().flat_map(|input| input.shape.iter().flat_map(|dims| dims.iter().skip(1)));
        behind.into_iter().any(|dim| matches!(dim, Dim::Dynamic(other) if other == name))
    };
    let counts = |dim: &Option<Dim>| match (dim, open) {
        (None, _) => false,
        (Some(Dim::Fixed(n)), _) => *n == batch,
        (Some(Dim::Dynamic(name)), Some(Dim::Dynamic(batch))) => {
            name == batch || name.is_empty() || batch.is_empty() || !inner(name)
        }
        (Some(_), _) => true,
    };
    (batch, firsts.iter().map(counts).collect())
}

/// Checks an array against what the graph wants, and says how many rows it has; none where all is for every sample. `counts`: whether the
/// first axis of the input counts them.
pub(super) fn column(
    wanted: &InputSpec,
    counts: bool,
    entry: Option<Entry>,
    header: Header,
) -> Result<(Column, Option<usize>), String> {
    let name = &wanted.name;
    if header.kind.is_float() != wanted.float {
        let kind = header.kind.name();
        let wants = if wanted.float { "floating-point numbers" } else { "integers" };
        return Err(format!("'{name}' holds {kind}, but the graph wants {wants}"));
    }
    let shape = &header.shape;
    let axes = wanted.shape.as_ref().map(Vec::len);
    let (lead, rows, row) = match (axes, &shape[..]) {
        (None, []) => (Lead::Whole, None, &shape[..]),
        (Some(axes), [rows, row @ ..]) if row.len() == axes => (Lead::Stacked, Some(*rows), row),
        // An array that lacks just the batch axis is one sample.
        (Some(axes), all) if all.len() + 1 == axes && counts => (Lead::Rows, Some(1), all),
        (_, [rows, row @ ..]) if counts => (Lead::Rows, Some(*rows), row),
        (_, all) => (Lead::Whole, None, all),
    };
    let fits = match lead {
        Lead::Rows => {
            let wanted =
                wanted.shape.as_ref().map(|dims| InputSpec { shape: Some(dims[1..].to_vec()), ..wanted.clone() });
            axes != Some(0) && wanted.is_none_or(|wanted| wanted.fits(row))
        }
        Lead::Stacked | Lead::Whole => wanted.fits(row),
    };
    if !fits {
        return Err(format!("'{name}' has the shape {shape:?}, but the graph wants {}", wanted.describe()));
    }
    Ok((Column { entry, lead, row: row.to_vec(), header }, rows))
}

/// Takes an array whose first axis does not count what the others' do for one that every sample gets whole, where the graph does not say
/// that both axes are the same.
pub(super) fn made_whole(column: &mut Column, wanted: &InputSpec, reference: &InputSpec) -> bool {
    let other = match (wanted.first(), reference.first()) {
        (Some(Dim::Fixed(_)), Some(Dim::Dynamic(_))) => true,
        (Some(Dim::Dynamic(a)), Some(Dim::Dynamic(b))) => a != b && !a.is_empty() && !b.is_empty(),
        _ => false,
    };
    let whole = other && wanted.fits(&column.header.shape);
    if whole {
        (column.lead, column.row) = (Lead::Whole, column.header.shape.clone());
    }
    whole
}

/// Refuses arrays that give one open dimension of the graph different sizes. The batch is none of these: rows are counted.
pub(super) fn same_sizes<'a>(columns: impl Iterator<Item = (&'a Column, &'a InputSpec)>) -> Result<(), String> {
    let mut sizes: HashMap<&str, (usize, &str)> = HashMap::new();
    for (column, wanted) in columns {
        let skipped = usize::from(column.lead == Lead::Rows);
        let behind_batch = wanted.shape.iter().flat_map(|shape| shape.iter().skip(skipped));
        for (dim, &n) in behind_batch.zip(&column.row) {
            let Dim::Dynamic(name) = dim else { continue };
            let (first, other) = *sizes.entry(name).or_insert((n, &wanted.name));
            if first != n && !name.is_empty() {
                let input = &wanted.name;
                return Err(format!(
                    "the graph's dimension '{name}' would be {first} in '{other}', but {n} in '{input}'"
                ));
            }
        }
    }
    Ok(())
}
