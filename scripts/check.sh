#!/usr/bin/env bash
# The one check command: sets up what the tests need, then format, lints, tests and documentation, all denied on warning.
# Needs: Rust, python3 with venv, node 20 or newer. The first run takes some minutes, most of them for dependencies.
# Slower ones, each by itself: check-windows.sh (the program under wine), check-aarch64.sh (the kernels in an emulator), release.sh
# with wheel/test.sh and wheel/debian.sh (what is published, in a fresh environment and in a bare Debian).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup-consumers.sh
cargo fmt --all --check
# cargo does not see the files that a list declares.
rustfmt --edition 2024 --check src/model/family/*.rs src/model/mixer/*.rs
cargo clippy --locked -- -D warnings
cargo clippy --locked --no-default-features -- -D warnings
cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
# Other systems, without what would need their C compiler.
targets="x86_64-pc-windows-gnu x86_64-unknown-linux-musl aarch64-apple-darwin aarch64-unknown-linux-gnu"
rustup target add $targets
for target in $targets; do
    cargo clippy --workspace --no-default-features --features int8,parquet --locked --target "$target" -- -D warnings
done
# What fuzzing feeds is no member of the workspace; it takes the versions that the program is built with.
cp Cargo.lock tests/fuzz/Cargo.lock
cargo check --manifest-path tests/fuzz/Cargo.toml --target-dir target
# With a driver at hand, tests that find none have failed. Mesa is told to choose devices in silence.
if compgen -G "/usr/share/vulkan/icd.d/lvp_icd*.json" >/dev/null; then export LLMQ_GPU_TESTS=1 NODEVICE_SELECT=1; fi
cargo test --workspace --all-features --locked
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --locked
