#!/usr/bin/env bash
# The main job as a Windows program under wine: quantize, eval, inspect, a run that is killed or stopped by Ctrl-C and --resume, odd and
# long paths, a full disk. Not part of check.sh: it takes some ten minutes, most of them for the build.
# Needs root: installs mingw-w64 and wine from apt-get where there are none, and mounts the full disk.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-pc-windows-gnu

if ! command -v x86_64-w64-mingw32-gcc > /dev/null || [ ! -x /usr/lib/wine/wine64 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc-mingw-w64-x86-64 wine64
fi
rustup target add $target
cargo build --locked --target $target
folder=${CARGO_TARGET_DIR:-target}/$target/debug

# Rust's library asks this one for random numbers; wine has it from version 9 on.
if [ ! -e $folder/bcryptprimitives.dll ]; then
    x86_64-w64-mingw32-gcc -shared -x c - -o $folder/bcryptprimitives.dll -ladvapi32 << 'EOF'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE at, SIZE_T bytes) { return SystemFunction036(at, (ULONG)bytes); }
EOF
fi

work=$(mktemp -d)
trap 'umount "$work/full" 2> /dev/null; rm -rf "$work"' EXIT
export WINEDEBUG=-all WINEPREFIX=$work/wine
llmq() { /usr/lib/wine/wine64 $folder/llmq.exe "$@"; }
little=(--samples 16 --seq-len 256)

echo "== the main job, into a folder with a space and an umlaut"
mkdir -p "$work/My Models/für"
out="$work/My Models/für/tiny.gguf"
llmq quantize eval/tiny -o "$out" "${little[@]}"
llmq inspect "$out" > "$work/inspect"
grep -q Q4_K "$work/inspect"
llmq eval "$out" --reference eval/tiny --report "$work/My Models/report.html" > "$work/eval"
grep "KL divergence" "$work/eval"
test -s "$work/My Models/report.html"

echo "== a path of more than 260 characters"
long="$work/$(printf 'a%.0s' {1..120})/$(printf 'b%.0s' {1..120})/$(printf 'c%.0s' {1..40})"
mkdir -p "$long"
llmq quantize eval/tiny -o "$long/tiny.gguf" "${little[@]}"
cmp "$out" "$long/tiny.gguf"

echo "== a file that is there already, and one that is open elsewhere, is not lost"
if llmq quantize eval/tiny -o "$out" "${little[@]}"; then
    echo "it was replaced without --force" >&2
    exit 1
fi
llmq quantize eval/tiny -o "$out" "${little[@]}" --force
cmp "$out" "$long/tiny.gguf"

echo "== a run that is killed goes on to the same bytes"
again="$work/again.gguf"
/usr/lib/wine/wine64 $folder/llmq.exe quantize eval/tiny -o "$again" "${little[@]}" &
run=$!
for _ in $(seq 600); do
    if [ -d "$again.unfinished" ]; then break; fi
    sleep 0.1
done
sleep 1
kill -9 $run
wait $run || true
test -d "$again.unfinished"
test ! -e "$again"
llmq quantize eval/tiny -o "$again" "${little[@]}" --resume
cmp "$out" "$again"

echo "== Ctrl-C at a terminal stops a run, which goes on to the same bytes"
stopped="$work/stopped.gguf"
arguments=$(printf '%q ' /usr/lib/wine/wine64 "$folder/llmq.exe" quantize eval/tiny -o "$stopped" "${little[@]}")
{
    for _ in $(seq 600); do
        if [ -d "$stopped.unfinished" ]; then break; fi
        sleep 0.1
    done
    sleep 1
    printf '\003'
    sleep 20
} | script -qec "$arguments" /dev/null > "$work/terminal" || code=$?
grep -q "interrupted" "$work/terminal" || { cat "$work/terminal"; echo "exit code ${code:-0}" >&2; exit 1; }
test "${code:-0}" = 130
test ! -e "$stopped"
llmq quantize eval/tiny -o "$stopped" "${little[@]}" --resume
cmp "$out" "$stopped"

echo "== a full disk is said, and with more room the run goes on to the same bytes"
mkdir "$work/full"
mount -t tmpfs -o size=1M llmq "$work/full"
if llmq quantize eval/tiny -o "$work/full/tiny.gguf" "${little[@]}" --work-dir "$work/scratch" 2> "$work/told"; then
    echo "it claims to have written more than there is room for" >&2
    exit 1
fi
cat "$work/told"
grep -Eqi "room|space|free" "$work/told"
test ! -e "$work/full/tiny.gguf"
mount -o remount,size=16M "$work/full"
llmq quantize eval/tiny -o "$work/full/tiny.gguf" "${little[@]}" --work-dir "$work/scratch" --resume
cmp "$out" "$work/full/tiny.gguf"
echo "Windows: all well"
