// bfloat16 to f32, by bits: what a number has in its upper half.

struct Params {
    first: u32, // quad that stands first
    quads: u32, // vec4 in all
}

@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>; // [quads], the earlier number in the lower half
@group(0) @binding(1) var<storage, read_write> numbers: array<vec4<f32>>; // [first + quads]
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = (group.y * groups.x + group.x) * 256u + thread;
    if at < p.quads {
        let pair = pairs[at];
        let low = pair << vec2<u32>(16u);
        let high = pair & vec2<u32>(0xffff0000u);
        numbers[p.first + at] = bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
    }
}
