#!/usr/bin/env bash
# Fuzzes the readers of what comes from strangers, on stable Rust and without a sanitizer: each target for some minutes, one after the
# other and at the lowest priority. Needs Rust, python3 and a C++ compiler (for libFuzzer, which comes with a crate).
#
#   scripts/fuzz.sh [MINUTES] [TARGET...]     5 minutes; all of tests/fuzz/fuzz_targets
#
# RUNS=N stops a target after so many inputs even if time is left. Faults go to tests/fuzz/artifacts; to see one again:
#   target/fuzz/HOST/release/TARGET tests/fuzz/artifacts/TARGET/crash-...
# Standard output has a row for the table in eval/results/fuzz.md (target, inputs, seconds of CPU and of day, edges covered,
# inputs kept, peak MB); what libFuzzer says is in tests/fuzz/artifacts/TARGET.log.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:-5}
shift || true
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    for file in tests/fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# The versions that the program is built with, and what cargo-fuzz passes to a nightly, but for the sanitizer.
[ tests/fuzz/Cargo.lock -nt Cargo.lock ] || cp Cargo.lock tests/fuzz/Cargo.lock
host=$(rustc -vV | sed -n 's/^host: //p')
sancov="-Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do sancov+=" -Cllvm-args=-sanitizer-coverage-$option"; done
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
RUSTFLAGS="$sancov --cfg fuzzing" nice cargo build --release --manifest-path tests/fuzz/Cargo.toml \
    --target-dir target/fuzz --target "$host" "${bins[@]}"
tests/fuzz/seeds.py tests/fuzz/corpus

# In memory where there is such a file system: a target writes a file for each input.
memory=$(mktemp -d "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/llmq-fuzz.XXXXXX")
trap 'rm -rf "$memory"' EXIT
export TMPDIR=$memory

faults=0
for target in "${targets[@]}"; do
    artifacts=tests/fuzz/artifacts/$target
    mkdir -p "$artifacts"
    case $target in config | tokenizer_json | tekken | template) length=2048 ;; *) length=1024 ;; esac # seeds fit
    options=(-max_total_time=$((60 * minutes)) -runs="${RUNS:--1}" -max_len=$length -timeout=60 -rss_limit_mb=1024)
    options+=(-print_final_stats=1 -artifact_prefix="$artifacts/")
    dictionary=tests/fuzz/dictionaries/$target.dict
    [ ! -f "$dictionary" ] || options+=(-dict="$dictionary")
    python3 - "$target" "$artifacts.log" nice -n 19 "target/fuzz/$host/release/$target" "tests/fuzz/corpus/$target" "${options[@]}" <<'PY' \
        || faults=$((faults + 1))
import re, resource, subprocess, sys, time
target, path, *command = sys.argv[1:]
started = time.time()
with open(path, "w") as log:
    status = subprocess.run(command, stdout=log, stderr=log).returncode
seconds, used = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
log = open(path, errors="replace").read()
last = lambda pattern: (re.findall(pattern, log) or ["?"])[-1]
inputs, coverage, corpus = last(r"number_of_executed_units:\s*(\d+)"), last(r"cov: (\d+)"), last(r"corp: (\d+)")
fault = " fault: " + last(r"Test unit written to (\S+)") if status else ""
print(f"| {target} | {inputs} | {used.ru_utime + used.ru_stime:.0f} | {seconds:.0f} | {coverage} | {corpus} | {used.ru_maxrss // 1024} |{fault}")
sys.exit(status != 0)
PY
done
[ $faults = 0 ] || { echo "$faults targets found faults" >&2; exit 1; }
