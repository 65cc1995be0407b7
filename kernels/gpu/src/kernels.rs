//! The kernels' texts, and what a device makes of them.
//!
//! A WGSL file is a template in one respect: a line that has `$g`, `$h` or `$i` in it is repeated for each value, `$g` and `$h` from 0 to
//! PER / 4, `$i` from 0 to PER. So sums are in variables with names, which every driver keeps in registers; arrays it might not.

/// One of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// `C = A·Bᵀ`.
    Gemm,
    /// `C += AᵀB`.
    Outer,
    /// bfloat16 to `f32`.
    Convert,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 3] = [Kernel::Gemm, Kernel::Outer, Kernel::Convert];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Gemm => "gemm",
            Kernel::Outer => "outer",
            Kernel::Convert => "convert",
        }
    }

    fn template(self) -> &'static str {
        match self {
            Kernel::Gemm => include_str!("gemm.wgsl"),
            Kernel::Outer => include_str!("outer.wgsl"),
            Kernel::Convert => include_str!("convert.wgsl"),
        }
    }
}

/// Numbers in each direction that a thread of [`Kernel::Gemm`] and [`Kernel::Outer`] computes; the tile is 16 times as wide. The wide one is
/// for real layers, the other one where most of a wide tile would lie outside.
pub const PER: [usize; 2] = [4, 8];

/// The text of a kernel whose threads compute `per` by `per` numbers.
pub fn source(kernel: Kernel, per: usize) -> String {
    let mut text = format!("const PER = {per}u;\n");
    for line in kernel.template().lines() {
        // What explains the lines has them in it, too.
        let code = line.split("//").next().unwrap_or_default();
        let range = |what: &str, most: usize| if code.contains(what) { 0..most } else { 0..1 };
        for g in range("$g", per / 4) {
            for h in range("$h", per / 4) {
                for i in range("$i", per) {
                    let own = line.replace("$g", &g.to_string()).replace("$h", &h.to_string());
                    text += &own.replace("$i", &i.to_string());
                    text.push('\n');
                }
            }
        }
    }
    text
}

/// The texts of everything that a device compiles, each with its kernel and what a thread computes.
pub fn sources() -> Vec<(Kernel, usize, String)> {
    let widths = |kernel| if kernel == Kernel::Convert { &PER[..1] } else { &PER[..] };
    let each = |kernel| widths(kernel).iter().map(move |&per| (kernel, per, source(kernel, per)));
    Kernel::ALL.into_iter().flat_map(each).collect()
}

/// What a device made of the kernels.
pub(crate) struct Pipelines(Vec<(Kernel, usize, wgpu::ComputePipeline)>);

impl Pipelines {
    /// `edit` may change the texts: tests make kernels wrong on purpose.
    pub fn new(device: &wgpu::Device, edit: &dyn Fn(Kernel, String) -> String) -> Pipelines {
        let pipeline = |(kernel, per, text): (Kernel, usize, String)| {
            let text = edit(kernel, text);
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name()),
                source: wgpu::ShaderSource::Wgsl(text.into()),
            };
            // SAFETY: every index is compared with the sizes in Params before it is used, loops end by them, and the functions of this crate
            // that fill Params hold them against the sizes of the buffers.
            let module =
                unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel.name()),
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            (kernel, per, pipeline)
        };
        Pipelines(sources().into_iter().map(pipeline).collect())
    }

    /// The one for an output of `rows` and `columns`, and the width of its tiles. By shapes alone, so that a device does always the same.
    pub fn get(&self, kernel: Kernel, rows: usize, columns: usize) -> (&wgpu::ComputePipeline, usize) {
        let per = PER[usize::from(rows.min(columns) > 16 * PER[0])];
        let found = self.0.iter().find(|(own, p, _)| *own == kernel && *p == per);
        let (.., pipeline) = found.expect("all are there");
        (pipeline, 16 * per)
    }

    /// The one that converts numbers.
    pub fn convert(&self) -> &wgpu::ComputePipeline {
        self.get(Kernel::Convert, 0, 0).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_repeated_and_comments_are_not() {
        let text = source(Kernel::Outer, 8);
        assert_eq!(text.matches("let a0 = ").count(), 1);
        assert_eq!(text.matches("x1_1 += a1.x * b1;").count(), 1);
        assert!(!text.lines().any(|line| line.split("//").next().is_some_and(|code| code.contains('$'))));
        assert_eq!(text.matches("see\n").count(), 1);
    }
}
