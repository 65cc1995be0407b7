#!/usr/bin/env bash
# Installs a wheel into a fresh environment and does the README's main job with it; needs python3 with venv, and no Rust.
#
#   scripts/wheel/test.sh [FILE.whl]
set -euo pipefail
cd "$(dirname "$0")/../.."
wheel=${1:-$(ls target/release-files/*.whl)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python=$(command -v python3 || command -v python)
"$python" -m venv "$work/venv"
bin=$work/venv/bin
if [ ! -d "$bin" ]; then bin=$work/venv/Scripts; fi
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-index "$wheel"

"$bin/llmq" --version
for file in bash-completion/completions/llmq zsh/site-functions/_llmq fish/vendor_completions.d/llmq.fish \
    man/man1/llmq.1 man/man1/llmq-quantize.1; do
    test -s "$work/venv/share/$file"
done
"$bin/llmq" quantize eval/tiny -o "$work/tiny.gguf"
"$bin/llmq" eval "$work/tiny.gguf" --reference eval/tiny --report "$work/report.html" --model-card "$work/README.md"
test -s "$work/report.html"
echo "the wheel: all well"
