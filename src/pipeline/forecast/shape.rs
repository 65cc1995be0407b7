//! The layers of a block by the sites that they read: what cost depends on.

use crate::format::Type;
use crate::grid::{LANES, Steps, Supers};
use crate::model::mixer::{Cost, Place};
use crate::model::{Kind, Reads, Site, TensorRole};
use crate::pipeline::plan::{Plan, Planned};

/// Blocks that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockShape {
    /// How many there are.
    pub count: usize,
    /// What the mixers of their halves cost.
    pub costs: Vec<Cost>,
    /// Their sites, in the order in which a token reaches them.
    pub sites: Vec<SiteShape>,
    /// Their experts.
    pub experts: Option<ExpertShape>,
}

/// Experts that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertShape {
    /// The half that they are in.
    pub half: usize,
    /// How many there are in a block.
    pub count: usize,
    /// How many each token goes to.
    pub used: usize,
    /// What one of them reads, and what is inside it.
    pub sites: [SiteShape; 2],
    /// Bytes of all of them in the file.
    pub bytes: u64,
}

/// The layers of a site that are rounded to codes.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteShape {
    /// What they read.
    pub site: Site,
    /// The tensors that read it, as GGUF calls them.
    pub names: Vec<String>,
    /// Numbers that each reads.
    pub columns: usize,
    /// The layers that are rounded.
    pub layers: Vec<LayerShape>,
    /// Rows of the layers that are not.
    pub others: usize,
    /// What makes the site's inputs can absorb a factor per channel.
    pub scalable: bool,
}

/// A layer that is rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerShape {
    /// Its rows.
    pub rows: usize,
    /// Numbers in a row.
    pub columns: usize,
    /// Its type in the file.
    pub kind: Type,
}

impl LayerShape {
    /// Its weights.
    pub fn elements(&self) -> u64 {
        (self.rows * self.columns) as u64
    }

    /// Bytes of its codes and scales before they are packed: a byte per code, and [`Steps`] for sixteen rows of a block.
    pub fn codes(&self) -> u64 {
        let per_lanes = self.columns * LANES + self.columns / self.kind.width() * size_of::<Steps>();
        (self.rows.div_ceil(LANES) * per_lanes) as u64
    }
}

impl SiteShape {
    /// The tensors that read it, as people call them.
    pub fn name(&self) -> String {
        match &self.names[..] {
            [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
            names => names.concat(),
        }
    }

    /// Whether its layer writes to the residual stream.
    pub fn is_inner(&self) -> bool {
        self.site.is_inner()
    }

    /// Weights that are rounded.
    pub fn elements(&self) -> u64 {
        self.layers.iter().map(LayerShape::elements).sum()
    }

    /// Weights of all layers that read it.
    pub fn all_elements(&self) -> u64 {
        self.elements() + (self.others * self.columns) as u64
    }

    /// Bytes of the rounded layers in the file.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.kind.size(layer.elements())).sum()
    }

    /// Bytes of their codes and scales before they are packed.
    pub fn codes(&self) -> u64 {
        self.layers.iter().map(LayerShape::codes).sum()
    }

    /// The layer with the most weights.
    pub fn largest(&self) -> LayerShape {
        let largest = self.layers.iter().copied().max_by_key(LayerShape::elements);
        largest.expect("only sites with rounded layers are kept")
    }

    /// How many widths the layers' blocks have.
    pub fn widths(&self) -> u64 {
        let mut widths: Vec<usize> = self.layers.iter().map(|layer| layer.kind.width()).collect();
        widths.sort_unstable();
        widths.dedup();
        widths.len() as u64
    }
}

impl BlockShape {
    /// The blocks of a plan, those that are alike together.
    pub fn all(plan: &Plan) -> Vec<BlockShape> {
        let mut shapes: Vec<BlockShape> = Vec::new();
        for tensors in plan.blocks().filter(|tensors| !tensors.is_empty()) {
            let config = tensors[0].spec.block.and_then(|block| plan.model().ok()?.blocks.get(block));
            let costs: Vec<Cost> = config.iter().flat_map(|block| block.mixers()).map(|mixer| mixer.cost()).collect();
            let halves = (0..costs.len()).flat_map(|half| Place::ALL.map(|place| Site { half, place }));
            let sites: Vec<SiteShape> = halves.filter_map(|site| of_site(plan, site, tensors)).collect();
            let shape = BlockShape { count: 1, costs, sites, experts: of_experts(plan, tensors) };
            match shapes.iter_mut().find(|other| BlockShape { count: 1, ..(*other).clone() } == shape) {
                Some(other) => other.count += 1,
                None => shapes.push(shape),
            }
        }
        shapes
    }

    /// The sites of a half that have something to round.
    pub fn sites(&self, half: usize) -> impl Iterator<Item = &SiteShape> {
        self.sites.iter().filter(move |site| site.site.half == half && !site.layers.is_empty())
    }

    /// Multiplications of attention and scans per token, in windows of so many positions, half of which are seen on average; and numbers
    /// that norms, rotations and gates go through.
    pub fn mixing(&self, positions: usize) -> (f64, f64) {
        let mixed = self.costs.iter().map(|cost| cost.mixing(positions)).sum();
        (mixed, self.costs.iter().map(|cost| cost.elementwise).sum())
    }

    /// The site of that name.
    pub fn site(&self, site: Site) -> Option<&SiteShape> {
        self.sites.iter().find(|shape| shape.site == site)
    }

    /// Numbers of its matrices.
    pub fn elements(&self) -> u64 {
        let experts = self.experts.iter().map(ExpertShape::elements);
        self.sites.iter().map(SiteShape::all_elements).chain(experts).sum()
    }
}

impl ExpertShape {
    /// Weights of all of them.
    pub fn elements(&self) -> u64 {
        self.count as u64 * self.sites.iter().map(SiteShape::all_elements).sum::<u64>()
    }
}

fn of_experts(plan: &Plan, tensors: &[Planned]) -> Option<ExpertShape> {
    let stacks: Vec<&Planned> = tensors.iter().filter(|t| t.spec.is_of_experts()).collect();
    let count = stacks.first()?.spec.shape[0];
    let used = plan.experts(stacks[0].spec.block?)?.used;
    let half = stacks[0].spec.half;
    let site = |place: Place, reads: Reads| {
        let site = Site { half, place };
        let own = stacks.iter().filter(|t| t.spec.reads == Some(reads));
        let layers: Vec<LayerShape> = own
            .clone()
            .filter(|t| t.is_rounded())
            .map(|t| LayerShape { rows: t.spec.shape[1], columns: t.spec.columns(), kind: t.kind })
            .collect();
        let others = own.clone().filter(|t| !t.is_rounded()).map(|t| t.spec.shape[1]).sum();
        let columns = own.clone().next().map_or(0, |t| t.spec.columns());
        let names = own.map(|t| short(&t.spec.gguf)).collect();
        SiteShape { site, names, columns, layers, others, scalable: false }
    };
    let bytes = stacks.iter().map(|t| t.bytes()).sum();
    let sites = [site(Place::Input, Reads::Routed), site(Place::Inner, Reads::RoutedInner)];
    Some(ExpertShape { half, count, used, sites, bytes })
}

fn of_site(plan: &Plan, site: Site, tensors: &[Planned]) -> Option<SiteShape> {
    let readers: Vec<&Planned> = tensors.iter().filter(|t| t.spec.site() == Some(site)).collect();
    let columns = readers.first()?.spec.columns();
    let names = readers.iter().map(|t| short(&t.spec.gguf)).collect();
    let (rounded, others): (Vec<&Planned>, Vec<&Planned>) = readers.into_iter().partition(|t| t.is_rounded());
    let layer = |t: &&Planned| LayerShape { rows: t.spec.rows(), columns, kind: t.kind };
    let absorber =
        plan.model().ok().and_then(|model| model.blocks[tensors[0].spec.block?].absorber(site, model.hidden));
    let role = absorber.map(|own| TensorRole::Block(own.part, Kind::Weight));
    let absorber = tensors.iter().find(|t| Some(t.spec.role) == role);
    let scalable = absorber.is_some_and(|t| match t.kind.encoding() {
        crate::format::Encoding::Grid(grid) => t.is_rounded() && grid.freedom().supers == Supers::Half,
        _ => true,
    });
    Some(SiteShape {
        site,
        names,
        columns,
        layers: rounded.iter().map(layer).collect(),
        others: others.iter().map(|t| t.spec.rows()).sum(),
        scalable,
    })
}

/// A tensor's name without its block and its ending.
fn short(name: &str) -> String {
    name.split('.').nth(2).unwrap_or(name).to_owned()
}
