#!/usr/bin/env bash
# Writes src/int8/onnx/proto.rs: the messages of ONNX's schema as prost types.
#
#   scripts/onnx-proto.sh
#
# Run it by hand when tests/consumers/requirements.txt moves to a newer onnx, and commit what it writes; the build needs neither this
# script nor protoc. The schema is the onnx-ml.proto of the installed package (scripts/setup-consumers.sh); it is compiled with
# protox, in a throw-away crate. Comments are left out: the schema's own are the reference.
set -euo pipefail
cd "$(dirname "$0")/.."
schema=$(echo .consumers/python/lib/python3*/site-packages/onnx/onnx-ml.proto)
[ -f "$schema" ] || { echo "onnx-proto.sh: no $schema; run scripts/setup-consumers.sh" >&2; exit 1; }
version=$(sed -n 's/^onnx==\([^ ]*\).*/\1/p' tests/consumers/requirements.txt)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
cp "$schema" "$work/onnx.proto"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "onnx-proto"
version = "0.0.0"
edition = "2024"

[dependencies]
prost-build = "=0.14.6"
protox = "0.10"
TOML
cat > "$work/src/main.rs" <<'RUST'
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["onnx.proto"], ["."])?;
    let mut config = prost_build::Config::new();
    // A tensor's bytes stay where the file was mapped.
    config.bytes(["TensorProto.raw_data"]).disable_comments(["."]).out_dir(".");
    Ok(config.compile_fds(files)?)
}
RUST
(cd "$work" && cargo run --quiet)
{
    echo "//! The messages of ONNX, from onnx-ml.proto of onnx $version (Apache-2.0, the ONNX project). Made by scripts/onnx-proto.sh:"
    echo "//! do not edit. What the fields mean stands in the [schema](https://github.com/onnx/onnx/blob/main/onnx/onnx.in.proto)."
    echo "#![allow(missing_docs, clippy::all)]"
    echo
    sed '/^\/\/ This file is @generated/d' "$work/onnx.rs"
} > src/int8/onnx/proto.rs
rustfmt --edition 2024 src/int8/onnx/proto.rs
