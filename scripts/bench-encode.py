#!/usr/bin/env python3
"""How fast weights are rounded to each type, from a GGUF of F16 to the finished file.

  .consumers/python/bin/python scripts/bench-encode.py [--threads N] [--imatrix] [--types Q4_0,Q4_K_S,...]

Shows, for each type, weights per second; bytes read and written per second, also as a part of what copying memory reaches
here; and, where the environment variable LLAMA_QUANTIZE names a llama-quantize, how many times faster llmq is on the same
file, type and number of threads, one after the other. Each figure is the best of three runs. The weights are random.
Needs `cargo build --release` and scripts/setup-consumers.sh (for numpy).
"""
import argparse, json, os, subprocess, sys, tempfile, time
import numpy as np

TYPES = "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K_S,Q4_K_S,Q5_K_S,Q6_K,IQ4_NL,IQ4_XS,MXFP4"
a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
a.add_argument("--threads", type=int, default=os.cpu_count())
a.add_argument("--imatrix", action="store_true", help="with an importance matrix")
a.add_argument("--types", default=TYPES)
a = a.parse_args()
here = os.path.dirname(os.path.abspath(__file__))
llmq = os.path.join(here, "..", "target", "release", "llmq")
peer = os.environ.get("LLAMA_QUANTIZE")


def best(command):
    """Seconds of the fastest of three runs."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        times.append(time.perf_counter() - started)
        if done.returncode:
            sys.exit(f"{command} failed: {done.stderr[-2000:]}")
    return min(times)


def copying():
    """Bytes per second that copying memory moves, read and written, on all threads' behalf of one."""
    x = np.ones(1 << 26, np.uint8)
    y = np.empty_like(x)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        np.copyto(y, x)
        times.append(time.perf_counter() - started)
    return 2 * x.nbytes / min(times)


with tempfile.TemporaryDirectory() as work:
    checkpoint, source, out = (os.path.join(work, name) for name in ("model", "model-f16.gguf", "out.gguf"))
    shape = ["--blocks", "4", "--hidden", "2048", "--ffn", "5632"]
    subprocess.run([sys.executable, os.path.join(here, "random_checkpoint.py"), checkpoint, *shape], check=True)
    subprocess.run([llmq, "quantize", checkpoint, "--type", "F16", "-o", source], check=True, capture_output=True)
    extra = []
    if a.imatrix:
        imatrix = os.path.join(work, "imatrix.gguf")
        measure = [llmq, "imatrix", source, "-o", imatrix, "-c", "64", "--chunks", "2"]
        subprocess.run(measure, check=True, capture_output=True)
        extra = ["--imatrix", imatrix]
    inspected = subprocess.run([llmq, "inspect", source, "--json"], check=True, capture_output=True, text=True)
    weights = json.loads(inspected.stdout.splitlines()[-1])["elements"]
    copied = copying()
    print(f"{weights / 1e6:.0f} M weights, {a.threads} threads; copying memory: {copied / 1e9:.1f} GB/s")
    print("type     Mweights/s   GB/s   of copying   x llama-quantize")
    for kind in a.types.split(","):
        threads = str(a.threads)
        ours = best([llmq, "quantize", source, "--type", kind, "--pure", "-m", "rtn", "-o", out, "--force",
                     "--threads", threads, *extra])
        moved = os.path.getsize(source) + os.path.getsize(out)
        ratio = ""
        if peer:
            name = "MXFP4_MOE" if kind == "MXFP4" else kind
            theirs = best([peer, "--pure", *extra, source, out, name, threads])
            ratio = f"{theirs / ours:.2f}"
        rate, share = moved / ours, moved / ours / copied
        print(f"{kind:8} {weights / 1e6 / ours:10.1f} {rate / 1e9:6.2f} {100 * share:11.1f}% {ratio:>18}", flush=True)
