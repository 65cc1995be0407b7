//! The layers of a block by the sites that they read: what cost depends on.

use crate::format::Type;
use crate::grid::{LANES, Steps, Supers};
use crate::model::block::Half;
use crate::model::{Kind, Part, Role, Site};
use crate::pipeline::plan::{Plan, Planned};

/// Blocks that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockShape {
    /// How many there are.
    pub count: usize,
    /// Their sites, in the order of [`Site::ALL`].
    pub sites: Vec<SiteShape>,
    /// Their experts.
    pub experts: Option<ExpertShape>,
}

/// Experts that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertShape {
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
    pub fn name(&self) -> &'static str {
        match self.site {
            Site::AttnIn => "attn_q, attn_k and attn_v",
            Site::AttnOut => "attn_output",
            Site::FfnIn => "ffn_gate and ffn_up",
            Site::FfnMid => "ffn_down",
        }
    }

    /// Whether its layer writes to the residual stream.
    pub fn is_inner(&self) -> bool {
        [Half::Attention, Half::Mlp].iter().any(|half| half.inner() == self.site)
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
        for tensors in plan.blocks() {
            let sites: Vec<SiteShape> = Site::ALL.iter().filter_map(|&site| of_site(plan, site, tensors)).collect();
            let experts = of_experts(plan, tensors);
            match shapes.iter_mut().find(|shape| shape.sites == sites && shape.experts == experts) {
                Some(shape) => shape.count += 1,
                None => shapes.push(BlockShape { count: 1, sites, experts }),
            }
        }
        shapes
    }

    /// The sites of a half that have something to round.
    pub fn sites(&self, half: Half) -> impl Iterator<Item = &SiteShape> {
        let sites = [half.input(), half.inner()];
        self.sites.iter().filter(move |site| sites.contains(&site.site) && !site.layers.is_empty())
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
    let used = plan.model().ok()?.form.experts?.used;
    let site = |site: Site, inside: bool| {
        let own = stacks.iter().filter(|t| matches!(t.spec.role, Role::Block(Part::ExpertDowns, _)) == inside);
        let layers: Vec<LayerShape> = own
            .clone()
            .filter(|t| t.is_rounded())
            .map(|t| LayerShape { rows: t.spec.shape[1], columns: t.spec.columns(), kind: t.kind })
            .collect();
        let others = own.clone().filter(|t| !t.is_rounded()).map(|t| t.spec.shape[1]).sum();
        SiteShape { site, columns: own.clone().next().map_or(0, |t| t.spec.columns()), layers, others, scalable: false }
    };
    let bytes = stacks.iter().map(|t| t.bytes()).sum();
    Some(ExpertShape { count, used, sites: [site(Site::FfnIn, false), site(Site::FfnMid, true)], bytes })
}

fn of_site(plan: &Plan, site: Site, tensors: &[Planned]) -> Option<SiteShape> {
    let readers: Vec<&Planned> = tensors.iter().filter(|t| t.spec.site() == Some(site)).collect();
    let columns = readers.first()?.spec.columns();
    let (rounded, others): (Vec<&Planned>, Vec<&Planned>) = readers.into_iter().partition(|t| t.is_rounded());
    let layer = |t: &&Planned| LayerShape { rows: t.spec.rows(), columns, kind: t.kind };
    let part = plan.model().ok().and_then(|model| model.absorber(site, tensors[0].spec.block?));
    let absorber = part.and_then(|part| tensors.iter().find(|t| t.spec.role == Role::Block(part, Kind::Weight)));
    let scalable = absorber.is_some_and(|t| match t.kind.encoding() {
        crate::format::Encoding::Grid(grid) => t.is_rounded() && grid.freedom().supers == Supers::Half,
        _ => true,
    });
    Some(SiteShape {
        site,
        columns,
        layers: rounded.iter().map(layer).collect(),
        others: others.iter().map(|t| t.spec.rows()).sum(),
        scalable,
    })
}
