#!/usr/bin/env bash
# What is published for one kind of computer: an archive with the program, its completions and manual pages, a wheel with
# the same, and the checksums of both, in target/release-files/.
#
#   scripts/release.sh [TARGET]
#
# TARGET is one that programs run for on this machine; the default is this machine's own, on Linux statically linked with
# musl (Debian: apt-get install musl-tools). Needs Rust, and python3 with venv.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
target=${1:-${host/linux-gnu/linux-musl}}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
out=target/release-files
name=llmq-$version-$target
program=target/$target/release/llmq
case $target in *windows*) program+=.exe ;; esac

rustup target add "$target"
cargo build --release --locked --target "$target"

share=$out/llmq.data/data/share
rm -rf $out/llmq.data "$out/$name"
mkdir -p $share/bash-completion/completions $share/zsh/site-functions $share/fish/vendor_completions.d "$out/$name"
"$program" completions bash > $share/bash-completion/completions/llmq
"$program" completions zsh > $share/zsh/site-functions/_llmq
"$program" completions fish > $share/fish/vendor_completions.d/llmq.fish
"$program" man $share/man/man1

cp -r "$program" LICENSE README.md $share "$out/$name"
"$program" completions powershell > "$out/$name/share/llmq.ps1"
tar -czf "$out/$name.tar.gz" -C $out "$name"
rm -r "${out:?}/$name"

python=$(command -v python3 || command -v python)
venv=$out/venv
"$python" -m venv $venv
bin=$venv/bin
if [ ! -d $bin ]; then bin=$venv/Scripts; fi
$bin/python -m pip install --quiet --disable-pip-version-check "maturin>=1.16,<2"
# A program that needs no C library runs beside any.
set -- --release --target "$target" --out ../../$out
case $target in *musl) set -- "$@" --compatibility manylinux2014 musllinux_1_1 ;; esac
rm -f $out/*.whl
(cd scripts/wheel && "../../$bin/maturin" build "$@")

cd $out
for file in "$name.tar.gz" *.whl; do
    if command -v sha256sum > /dev/null; then sha256sum "$file"; else shasum -a 256 "$file"; fi
done | tee "$name.sha256"
