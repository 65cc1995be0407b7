#!/usr/bin/env bash
# Peak memory against the number of blocks: the same calibration through checkpoints of 4, 8 and 16 equal blocks of random
# weights. The peak is the whole process's, mapped files included, as the kernel counts it (VmHWM).
# Needs scripts/setup-consumers.sh to have run (for numpy).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --quiet
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "blocks  checkpoint MB  peak MB  seconds"
for blocks in 4 8 16; do
    .consumers/python/bin/python scripts/random_checkpoint.py "$work/in" --blocks "$blocks"
    summary=$(target/release/llmq quantize "$work/in" -o "$work/out.gguf" --force --type Q4_0 --samples 8 --seq-len 512 \
        --json 2>/dev/null | tail -n 1)
    size=$(stat -c %s "$work/in/model.safetensors")
    python3 - "$blocks" "$size" "$summary" <<'PY'
import json, sys
s = json.loads(sys.argv[3])
print(f"{sys.argv[1]:>6}  {int(sys.argv[2]) / 1e6:13.0f}  {s['peak_memory_bytes'] / 1e6:7.0f}  {s['seconds']:7.1f}")
PY
done
