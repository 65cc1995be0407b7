// C = A·Bᵀ, or C += A·Bᵀ, in f32. A line with $i, $g or $h is repeated: see kernels.rs.
//
// A workgroup computes a square of TILE × TILE numbers, each of its 16 × 16 threads PER × PER of them: rows y, y + 16, … and columns
// x, x + 16, …, so that neighbouring threads write neighbouring numbers. Every number is one sum, in the order of k.

struct Params {
    rows: u32,     // of A and C
    columns: u32,  // of C that this dispatch computes: rows of B
    quads: u32,    // vec4 in a row of A and of B
    b_first: u32,  // row of B that stands first
    c_first: u32,  // column of C that it gives
    c_stride: u32, // numbers in a row of C
    add: u32,      // 1: to what is in C
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [rows, quads]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [b_first + columns, quads]
@group(0) @binding(2) var<storage, read_write> c: array<f32>; // [rows, c_stride]
@group(0) @binding(3) var<uniform> p: Params;

const TILE = 16u * PER;

// 4 vec4 of each row: [quad, row], the row with its lowest bits turned by the quad, so that neither writing nor reading meets in a bank.
var<workgroup> left: array<vec4<f32>, 4u * TILE>;
var<workgroup> right: array<vec4<f32>, 4u * TILE>;

fn of_a(row: u32, quad: u32) -> vec4<f32> {
    if row < p.rows && quad < p.quads {
        return a[row * p.quads + quad];
    }
    return vec4<f32>();
}

fn of_b(row: u32, quad: u32) -> vec4<f32> {
    if row < p.columns && quad < p.quads {
        return b[(p.b_first + row) * p.quads + quad];
    }
    return vec4<f32>();
}

fn put(row: u32, column: u32, sum: f32) {
    if row < p.rows && column < p.columns {
        let at = row * p.c_stride + p.c_first + column;
        if p.add == 1u {
            c[at] += sum;
        } else {
            c[at] = sum;
        }
    }
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_id) at: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let top = tile.y * TILE;
    let first = tile.x * TILE;
    // What this thread brings: one vec4 of every 64th row of each operand.
    let row = thread / 4u;
    let quad = thread % 4u;
    let home = quad * TILE + (row ^ (2u * quad));
    var sum$i_$h = vec4<f32>();
    var next_a$h = of_a(top + row + 64u * $hu, quad);
    var next_b$h = of_b(first + row + 64u * $hu, quad);
    for (var k = 0u; k < p.quads; k += 4u) {
        left[home + 64u * $hu] = next_a$h;
        right[home + 64u * $hu] = next_b$h;
        workgroupBarrier();
        // Asked for before the products, so that they hide the wait.
        next_a$h = of_a(top + row + 64u * $hu, k + 4u + quad);
        next_b$h = of_b(first + row + 64u * $hu, k + 4u + quad);
        for (var q = 0u; q < 4u; q++) {
            let from_a = q * TILE + (at.y ^ (2u * q));
            let from_b = q * TILE + (at.x ^ (2u * q));
            let a$i = left[from_a + 16u * $iu];
            let b0_$h = right[from_b + 64u * $hu];
            let b1_$h = right[from_b + 64u * $hu + 16u];
            let b2_$h = right[from_b + 64u * $hu + 32u];
            let b3_$h = right[from_b + 64u * $hu + 48u];
            let x$h = vec4<f32>(b0_$h.x, b1_$h.x, b2_$h.x, b3_$h.x);
            let y$h = vec4<f32>(b0_$h.y, b1_$h.y, b2_$h.y, b3_$h.y);
            let z$h = vec4<f32>(b0_$h.z, b1_$h.z, b2_$h.z, b3_$h.z);
            let w$h = vec4<f32>(b0_$h.w, b1_$h.w, b2_$h.w, b3_$h.w);
            sum$i_$h += a$i.x * x$h;
            sum$i_$h += a$i.y * y$h;
            sum$i_$h += a$i.z * z$h;
            sum$i_$h += a$i.w * w$h;
        }
        workgroupBarrier();
    }
    put(top + at.y + 16u * $iu, first + at.x + 64u * $hu, sum$i_$h.x);
    put(top + at.y + 16u * $iu, first + at.x + 64u * $hu + 16u, sum$i_$h.y);
    put(top + at.y + 16u * $iu, first + at.x + 64u * $hu + 32u, sum$i_$h.z);
    put(top + at.y + 16u * $iu, first + at.x + 64u * $hu + 48u, sum$i_$h.w);
}
