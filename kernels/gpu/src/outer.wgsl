// C += AᵀB in f32; for a symmetric sum only the tiles that reach the diagonal or lie below it. A line with $g or $h is repeated: see
// kernels.rs.
//
// A workgroup computes a square of TILE × TILE numbers, each of its 16 × 16 threads PER × PER of them: rows 4y … 4y + 3 and columns
// 4x … 4x + 3, and those 64 further. Every number is one sum over the tokens, in their order, which is then added to C.

struct Params {
    tokens: u32,
    a_quads: u32, // vec4 in a row of A
    b_quads: u32, // vec4 in a row of B and of C
    rows: u32,    // of this band of C
    a_first: u32, // column of A that the band's first row belongs to
    tile: u32,    // row of tiles in the band that this dispatch begins with
    lower: u32,   // 1: nothing above the diagonal
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [tokens, a_quads]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [tokens, b_quads]
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>; // [rows, b_quads]
@group(0) @binding(3) var<uniform> p: Params;

const TILE = 16u * PER;
const QUADS = 4u * PER;

// 16 tokens: [token, QUADS].
var<workgroup> left: array<vec4<f32>, 16u * QUADS>;
var<workgroup> right: array<vec4<f32>, 16u * QUADS>;

fn of_a(token: u32, quad: u32) -> vec4<f32> {
    if token < p.tokens && quad < p.a_quads {
        return a[token * p.a_quads + quad];
    }
    return vec4<f32>();
}

fn of_b(token: u32, quad: u32) -> vec4<f32> {
    if token < p.tokens && quad < p.b_quads {
        return b[token * p.b_quads + quad];
    }
    return vec4<f32>();
}

fn put(row: u32, quad: u32, sum: vec4<f32>) {
    if row < p.rows && quad < p.b_quads {
        c[row * p.b_quads + quad] += sum;
    }
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_id) at: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let top = (p.tile + tile.y) * TILE;
    if p.lower == 1u && tile.x * TILE > p.a_first + top + TILE - 1u {
        return;
    }
    // What this thread brings: one vec4 of every (64 / PER)th token of each operand.
    let token = thread / QUADS;
    let quad = thread % QUADS;
    let a_quad = p.a_first / 4u + top / 4u + quad;
    let b_quad = tile.x * QUADS + quad;
    var x$g_$h = vec4<f32>();
    var y$g_$h = vec4<f32>();
    var z$g_$h = vec4<f32>();
    var w$g_$h = vec4<f32>();
    var next_a$h = of_a(token + 64u / PER * $hu, a_quad);
    var next_b$h = of_b(token + 64u / PER * $hu, b_quad);
    for (var t = 0u; t < p.tokens; t += 16u) {
        left[thread + 256u * $hu] = next_a$h;
        right[thread + 256u * $hu] = next_b$h;
        workgroupBarrier();
        // Asked for before the products, so that they hide the wait.
        next_a$h = of_a(t + 16u + token + 64u / PER * $hu, a_quad);
        next_b$h = of_b(t + 16u + token + 64u / PER * $hu, b_quad);
        for (var s = 0u; s < 16u; s++) {
            let a$g = left[s * QUADS + at.y + 16u * $gu];
            let b$h = right[s * QUADS + at.x + 16u * $hu];
            x$g_$h += a$g.x * b$h;
            y$g_$h += a$g.y * b$h;
            z$g_$h += a$g.z * b$h;
            w$g_$h += a$g.w * b$h;
        }
        workgroupBarrier();
    }
    put(top + 4u * at.y + 64u * $gu, tile.x * QUADS + at.x + 16u * $hu, x$g_$h);
    put(top + 4u * at.y + 64u * $gu + 1u, tile.x * QUADS + at.x + 16u * $hu, y$g_$h);
    put(top + 4u * at.y + 64u * $gu + 2u, tile.x * QUADS + at.x + 16u * $hu, z$g_$h);
    put(top + 4u * at.y + 64u * $gu + 3u, tile.x * QUADS + at.x + 16u * $hu, w$g_$h);
}
