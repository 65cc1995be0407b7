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

    /// How many rows of a file make one run of the graph, where the length of its first axis is fixed.
    pub(super) fn rows(&self) -> Option<usize> {
        self.shape.as_ref()?.first()?.fixed()
    }
}

/// Checks an array against what the graph wants, and says how many rows it has.
pub(super) fn column(wanted: &InputSpec, entry: Option<Entry>, header: Header) -> Result<(Column, usize), String> {
    let name = &wanted.name;
    if header.kind.is_float() != wanted.float {
        let kind = header.kind.name();
        let wants = if wanted.float { "floating-point numbers" } else { "integers" };
        return Err(format!("'{name}' holds {kind}, but the graph wants {wants}"));
    }
    let shape = &header.shape;
    let axes = wanted.shape.as_ref().map(Vec::len);
    // An array that lacks just the batch axis is one sample.
    let (rows, row) = match (axes, &shape[..]) {
        (Some(axes), all) if all.len() + 1 == axes => (1, all),
        (_, [rows, row @ ..]) => (*rows, row),
        (_, []) => return Err(format!("'{name}' is a single number, but the first axis has to count samples")),
    };
    let fits = wanted.shape.as_ref().is_none_or(|wanted| {
        let size = |(dim, &n): (&Dim, &usize)| dim.fixed().is_none_or(|wanted| wanted == n);
        wanted.len() == row.len() + 1 && wanted[1..].iter().zip(row).all(size)
    });
    if !fits {
        return Err(format!("'{name}' has the shape {shape:?}, but the graph wants {}", wanted.describe()));
    }
    Ok((Column { entry, row: row.to_vec(), header }, rows))
}

/// Refuses arrays that give one open dimension of the graph different sizes. The batch is none of these: rows are counted.
pub(super) fn same_sizes<'a>(columns: impl Iterator<Item = (&'a Column, &'a InputSpec)>) -> Result<(), String> {
    let mut sizes: HashMap<&str, (usize, &str)> = HashMap::new();
    for (column, wanted) in columns {
        let behind_batch = wanted.shape.iter().flat_map(|shape| shape.iter().skip(1));
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
