#!/usr/bin/env bash
# Makes the pictures of a report that eval/ shows: of the embedded checkpoint, 1200 and 390 pixels wide.
#
#   scripts/report_screenshots.sh
#
# Needs what scripts/setup-consumers.sh installs, and a built llmq (LLMQ names another one than target/debug/llmq). Writes
# eval/report-1200.png (light) and eval/report-390.png (dark). pngquant, if it is there, makes them smaller.
set -euo pipefail
cd "$(dirname "$0")/.."
llmq=$(realpath "${LLMQ:-target/debug/llmq}")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r eval/tiny "$work/llama-tiny"
cd "$work"
for kind in Q3_K_M Q4_K_M Q5_K_M; do
    "$llmq" quantize llama-tiny -o $kind.gguf --type $kind --method gptq --samples 32 --seq-len 256
done
"$llmq" eval Q4_K_M.gguf --reference llama-tiny --layers --report one.html >/dev/null
"$llmq" compare Q3_K_M.gguf Q4_K_M.gguf Q5_K_M.gguf --reference llama-tiny --report several.html >/dev/null
view() {
    echo "{\"page\": \"$work/$1\", \"views\": [{\"width\": $2, \"scheme\": \"$3\", \"screenshot\": \"$root/eval/$4\"}]}" |
        node "$root/tests/consumers/browser.mjs" >/dev/null
    ! command -v pngquant >/dev/null || pngquant --force --strip --output "$root/eval/$4" "$root/eval/$4"
}
view one.html 1200 light report-1200.png
view several.html 390 dark report-390.png
