#!/usr/bin/env bash
# Installs a wheel in a bare Debian that has Python, and neither a compiler nor Rust, and does the README's main job there, all of it
# in two minutes. Needs debootstrap, root, and some 400 MB in the folder for temporary files.
#
#   scripts/wheel/debian.sh [FILE.whl] [SUITE [MIRROR]]
set -euo pipefail
cd "$(dirname "$0")/../.."
wheel=${1:-$(ls target/release-files/*.whl)}
shift || true
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

debootstrap --variant=minbase --include=python3-venv "${1:-stable}" "$root" "${@:2}" > "$root/debootstrap.log" ||
    { tail -5 "$root/debootstrap.log" >&2; exit 1; }
if chroot "$root" sh -c 'command -v cc || command -v cargo'; then
    echo "that root is not bare" >&2
    exit 1
fi
mkdir -p "$root/llmq/scripts/wheel" "$root/llmq/eval"
cp scripts/wheel/test.sh "$root/llmq/scripts/wheel/"
cp -r eval/tiny "$root/llmq/eval/"
cp "$wheel" "$root/llmq/"

SECONDS=0
chroot "$root" env -i PATH=/usr/bin:/bin HOME=/root /llmq/scripts/wheel/test.sh "/llmq/$(basename "$wheel")"
echo "in a bare Debian $(cat "$root/etc/debian_version"): $SECONDS s"
if [ $SECONDS -ge 120 ]; then
    echo "more than two minutes" >&2
    exit 1
fi
