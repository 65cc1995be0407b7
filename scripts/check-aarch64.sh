#!/usr/bin/env bash
# Lints and tests the kernels for 64-bit ARM, in an emulator that has NEON's products of bfloat16. Not part of check.sh, which tests the
# machine that it runs on.
# Needs: qemu-aarch64 (package qemu-user), aarch64-linux-gnu-gcc (package gcc-aarch64-linux-gnu), rustup.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
rustup target add "$target"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"
cargo clippy -p llmq-kernels --all-targets --locked --target "$target" -- -D warnings
# The emulator does not say which pages are large.
cargo test -p llmq-kernels --locked --target "$target" -- --skip the_system_knows_of_large_ones
