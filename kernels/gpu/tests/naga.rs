//! Every kernel, in every width, through what compiles it for each kind of driver; no driver is needed.

use llmq_gpu::kernels::sources;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module};

fn validated(text: &str) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|error| panic!("{}", error.emit_to_string(text)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module);
    let info = info.unwrap_or_else(|error| panic!("{}", error.emit_to_string(text)));
    (module, info)
}

#[test]
fn every_kernel_is_valid_and_is_written_for_every_driver() {
    for (kernel, per, text) in sources() {
        let (module, info) = validated(&text);
        let words = spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap();
        assert_eq!(words[0], 0x0723_0203, "{kernel:?} {per}");
        let options = msl::Options { fake_missing_bindings: true, ..msl::Options::default() };
        let (metal, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
        assert!(metal.contains("kernel void"), "{kernel:?} {per}");
        let mut directx = String::new();
        let (options, pipeline) = (hlsl::Options::default(), hlsl::PipelineOptions::default());
        hlsl::Writer::new(&mut directx, &options, &pipeline).write(&module, &info, None).unwrap();
        assert!(directx.contains("numthreads"), "{kernel:?} {per}");
    }
}

#[test]
fn every_device_has_the_threads_and_the_shared_memory() {
    // What WebGPU promises of every device.
    const THREADS: u32 = 256;
    const SHARED: u32 = 16 << 10;
    const BUFFERS: usize = 8;
    for (kernel, per, text) in sources() {
        let (module, _) = validated(&text);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let of = |space: AddressSpace| {
            module
                .global_variables
                .iter()
                .map(|(_, v)| v)
                .filter(move |v| v.space == space)
                .map(|v| layouter[v.ty].size)
        };
        assert!(of(AddressSpace::WorkGroup).sum::<u32>() <= SHARED, "{kernel:?} {per}");
        assert!(module.global_variables.len() <= BUFFERS, "{kernel:?} {per}");
        // Uniforms are filled in whole 16 bytes.
        assert!(of(AddressSpace::Uniform).all(|size| size % 4 == 0), "{kernel:?} {per}");
        let [entry] = &module.entry_points[..] else { panic!("{kernel:?} has several entries") };
        assert_eq!(entry.workgroup_size.iter().product::<u32>(), THREADS, "{kernel:?} {per}");
    }
}
