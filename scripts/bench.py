#!/usr/bin/env python3
"""How fast llmq is against the others, and in how much memory, side by side on this machine.

  scripts/bench.py [--only products,eval,rtn,gptq,memory,seven,eight,real,gpu] [--model DIR] [--calib FILE]
                   [--text FILE] [--blocks N] [--long] [--out FILE]

Writes a table, by default eval/results/bench.md. Each pair is timed in turns, each figure is the best of three runs. What a
comparison needs and this machine lacks is named in the table instead of a figure:

  products  TORCH_PYTHON: a python with torch; and `cargo bench`, against the gemm crate
  eval      scripts/setup-consumers.sh (llama.cpp, through node-llama-cpp)
  rtn       LLAMA_QUANTIZE: llama.cpp's quantizer, from a 16-bit GGUF that llmq has made (its own converter is not counted)
  gptq      LLAMA_IMATRIX and LLAMA_QUANTIZE
  memory    scripts/setup-consumers.sh (numpy): peak memory against the number of blocks
  eight     the same, LLAMA_IMATRIX and LLAMA_QUANTIZE: llmq's default on one block of 2048 / 8192, and with --long of 4096 / 14336,
            with outliers; --windows x 512 tokens
  real      LLAMA_IMATRIX and LLAMA_QUANTIZE, --factors and --dither: two folders of one pretrained checkpoint, whole; processor seconds, and
            beside them KL divergence from the original on --chunks windows of the text that is built in
  gpu       a GPU, and llmq built with --features gpu: each kernel alone and with the way there and back; and llmq's default on one block of
            4096 / 14336, 128 x 1024 tokens, there (--device) against the CPU, which is left out after --patience seconds; under eight
            minutes. Not among what runs by default
  seven     the same: --blocks of a 7B model, 4096 / 11008; 8 x 512 tokens, and with --long 128 x 2048

--model is by default the embedded checkpoint, which is too small to say much. Needs `cargo build --release`.
"""
import argparse, json, os, re, shlex, subprocess, sys, tempfile, time
from machine import CORES, LLMQ, ROOT, header

PYTHON = os.path.join(ROOT, ".consumers", "python", "bin", "python")
SECTIONS = ["products", "eval", "rtn", "gptq", "memory", "seven", "eight", "real"]


def run(command):
    """Runs a command; gives its standard output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def summary(*arguments):
    """The last JSON line of llmq."""
    return json.loads(run([LLMQ, *arguments, "--json"]).splitlines()[-1])


def in_turns(*calls, rounds=3):
    """The best time of each call, run in turns; a call may give the seconds that count."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            seconds = call()
            best[i] = min(best[i], seconds if isinstance(seconds, float) else time.perf_counter() - started)
    return best


def row(what, target, ours=None, theirs=None, unit="", ratio=None, missing=None):
    """A line of the table."""
    if missing:
        return f"| {what} | | | not measured: no {missing} | {target} |"
    shown = lambda x: "" if x is None else f"{x:,.4g} {unit}" if x < 1e3 else f"{x:,.0f} {unit}"
    return f"| {what} | {shown(ours)} | {shown(theirs)} | {'' if ratio is None else f'{ratio:.2f}'} | {target} |"


TORCH = ("import torch, time, sys\ntorch.set_num_threads(int(sys.argv[1])); n, k, m = map(int, sys.argv[2:5])\n"
         "kind = getattr(torch, sys.argv[5]); x, w = torch.randn(n, k).to(kind), torch.randn(m, k).to(kind)\nts = []\nx @ w.t()\n"
         "for _ in range(5):\n s = time.perf_counter(); x @ w.t(); ts.append(time.perf_counter() - s)\n"
         "print(2e-9 * n * m * k / min(ts))")


def torch_rate(n, k, m, kind="float32"):
    """GFLOP/s of torch's product [n, k] x [k, m]; nothing without TORCH_PYTHON."""
    torch = os.environ.get("TORCH_PYTHON")
    return float(run([torch, "-c", TORCH, str(CORES), str(n), str(k), str(m), kind])) if torch else None


def products(a):
    """Matrix products, against torch and the gemm crate; sums of outer products against the full product."""
    bench = run(["cargo", "bench", "--quiet", "--manifest-path", os.path.join(ROOT, "Cargo.toml"), "-p", "llmq-kernels"])
    found = re.findall(r"^(linear|syrk|cholesky) (.*?)\s+([\d.]+) GFLOP/s\s+([\d.]+) x (.*)$", bench, re.M)
    lines = []
    for kind, shape, rate, ratio, other in found:
        rate, ratio = float(rate), float(ratio)
        rounded, decoded = shape.startswith("rounded"), shape.startswith("of bfloat16")
        target = "" if rounded or decoded else {"linear": "≥ 1.0", "syrk": "≥ 1.7"}.get(kind, "")
        lines.append(row(f"{kind} {shape}, against {other}", target, rate, rate / ratio, "GFLOP/s", ratio))
        sizes = re.findall(r"\d+", shape.replace("bfloat16", ""))
        if kind != "linear" or decoded or "4096" not in sizes or sizes[0] != "2048":
            continue
        number, target = ("bfloat16", "≥ 0.8") if rounded else ("float32", "≥ 0.9")
        theirs = torch_rate(*sizes, number)
        what = f"linear {shape}, against torch's product in {number}"
        if theirs:
            lines.append(row(what, target, rate, theirs, "GFLOP/s", rate / theirs))
        else:
            lines.append(row(what, target, missing="TORCH_PYTHON"))
    if not any("rounded" in shape for _, shape, *_ in found):
        lines.append(row("products of operands rounded to bfloat16, against torch's in bfloat16", "≥ 0.8",
                         missing="instructions for them that are faster here than single precision"))
    return lines


def evaluation(a, work):
    """Tokens per second through the model, against llama.cpp reading the same tokens."""
    node = os.path.join(ROOT, "scripts", "llama_speed.mjs")
    lines = []
    for kind in ["F16", "Q4_0", "Q4_K_M"]:
        file = os.path.join(work, f"{kind}.gguf")
        run([LLMQ, "quantize", a.model, "--type", kind, "--method", "rtn", "-o", file])
        text = ["-f", a.text] if a.text else []
        judged = summary("eval", file, "--perplexity", "--chunks", "16", *text)
        windows = judged["windows"]
        ours = lambda: run([LLMQ, "eval", file, "--perplexity", "--chunks", str(windows), *text]) and None
        theirs = lambda: float(run(["node", node, file, str(windows), "512", str(CORES)]))
        if not os.path.exists(os.path.join(ROOT, ".consumers", "node")):
            lines.append(row(f"eval --perplexity, {kind}", "≥ 1.0", missing="scripts/setup-consumers.sh"))
            continue
        rate = lambda seconds: windows * 512 / seconds
        ours, theirs = map(rate, in_turns(ours, theirs))
        lines.append(row(f"eval --perplexity, {kind}, against llama.cpp's prompt processing (its output matrix for one token "
                         "a window, ours for 256; our start-up counted, its not)", "≥ 1.0", ours, theirs, "tokens/s", ours / theirs))
    return lines


def rtn(a, work):
    """From the checkpoint to Q4_K_M without calibration."""
    peer = os.environ.get("LLAMA_QUANTIZE")
    if not peer:
        return [row("rtn, checkpoint to Q4_K_M, against llama-quantize", "≤ 0.5", missing="LLAMA_QUANTIZE")]
    source, out = (os.path.join(work, name) for name in ("f16.gguf", "out.gguf"))
    run([LLMQ, "quantize", a.model, "--type", "F16", "--method", "rtn", "-o", source, "--force"])
    ours, theirs = in_turns(
        lambda: run([LLMQ, "quantize", a.model, "--type", "Q4_K_M", "--method", "rtn", "-o", out, "--force"]) and None,
        lambda: run([peer, source, out, "Q4_K_M", str(CORES)]) and None)
    what = "rtn, checkpoint to Q4_K_M, against llama-quantize from F16, without the converter that has to come before it"
    return [row(what, "≤ 0.5 with the converter", ours, theirs, "s", ours / theirs)]


def peer(source, matrix, out, kind, text, chunks):
    """llama.cpp's two commands that make a file of a type from some windows of text."""
    imatrix, quantize = os.environ["LLAMA_IMATRIX"], os.environ["LLAMA_QUANTIZE"]
    return [
        [imatrix, "-m", source, "-f", text, "-o", matrix, "-c", "512", "--chunks", str(chunks), "-t", str(CORES), "-ngl", "0"],
        [quantize, "--imatrix", matrix, source, out, kind, str(CORES)],
    ]


def gptq(a, work):
    """Calibrated runs, against llama.cpp's imatrix and quantizer on as many tokens."""
    imatrix, quantize = os.environ.get("LLAMA_IMATRIX"), os.environ.get("LLAMA_QUANTIZE")
    calib = ["--calib", a.calib] if a.calib else []
    source, matrix, out = (os.path.join(work, name) for name in ("f16.gguf", "imatrix.gguf", "out.gguf"))
    common = [LLMQ, "quantize", a.model, "--type", "Q4_K_M", "-o", out, "--force", "--samples", "128", "--seq-len", "512", *calib]
    runs = {
        "plain GPTQ (--method gptq --no-gptaq --no-order --sweeps 0)": ["--method", "gptq", "--no-gptaq", "--no-order", "--sweeps", "0"],
        "--method auto": ["--method", "auto"],
    }
    if not (imatrix and quantize and a.text):
        return [row(f"{name}, 128 x 512, against llama-imatrix and llama-quantize", "≤ 1.5", missing="LLAMA_IMATRIX, "
                    "LLAMA_QUANTIZE or --text") for name in runs]
    run([LLMQ, "quantize", a.model, "--type", "F16", "--method", "rtn", "-o", source, "--force"])

    both = peer(source, matrix, out, "Q4_K_M", a.text, 128)
    calls = [lambda options=options: run([*common, *options]) and None for options in runs.values()]
    peak = torch_rate(2048, 2048, 2048)
    *ours, theirs = in_turns(*calls, lambda: [run(command) for command in both] and None, rounds=1)
    lines = [row(f"{name}, 128 x 512, against llama-imatrix and llama-quantize", "≤ 1.5", seconds, theirs, "s", seconds / theirs)
             for name, seconds in zip(runs, ours)]
    for (name, options), seconds in zip(runs.items(), ours):
        what = f"{name}: its products and factorizations, against torch's product of 2048 x 2048 x 2048"
        if not peak:
            lines.append(row(what, "≥ 0.5", missing="TORCH_PYTHON"))
            continue
        counted = json.loads(run([LLMQ, "plan", *common[2:5], *common[8:], *options, "--json"]).splitlines()[-1])
        rate = 2e-9 * counted["forecasts"][0]["multiplications"] / seconds
        lines.append(row(what, "≥ 0.5", rate, peak, "GFLOP/s", rate / peak))
    return lines


def anonymous(command):
    """Peak anonymous memory of a command in bytes, by looking five times a second; and its seconds."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status", encoding="utf8") as file:
                peak = max(peak, *(int(kib) << 10 for kib in re.findall(r"RssAnon:\s*(\d+)", file.read())), 0)
        except OSError:
            pass
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{process.stderr.read()[-2000:]}")
    return peak, time.perf_counter() - started


def memory(a, work):
    """Peak memory against the number of blocks, with GPTQ."""
    lines, first = [], None
    for blocks in [8, 16, 32]:
        model = os.path.join(work, "random")
        run([PYTHON, os.path.join(ROOT, "scripts", "random_checkpoint.py"), model, "--blocks", str(blocks)])
        peak, seconds = anonymous([LLMQ, "quantize", model, "--type", "Q4_0", "--method", "gptq", "--samples", "8", "--seq-len", "512",
                                   "-o", os.path.join(work, "out.gguf"), "--force"])
        first = first or peak
        lines.append(row(f"peak anonymous memory, {blocks} blocks of 1024 / 2816 ({seconds:.0f} s), against 8 blocks",
                         "0.97 to 1.03", peak / 1e6, first / 1e6, "MB", peak / first))
    return lines


def seven(a, work):
    """Blocks of a 7B model, and whether `plan` knew what they would take."""
    model = os.path.join(work, "seven")
    shape = ["--blocks", str(a.blocks), "--hidden", "4096", "--ffn", "11008", "--heads", "32", "--kv-heads", "32", "--vocab", "32000"]
    run([PYTHON, os.path.join(ROOT, "scripts", "random_checkpoint.py"), model, *shape])
    lines = []
    for windows, options, limit in [("8 x 512", ["--samples", "8", "--seq-len", "512"], 4),
                                    ("128 x 2048", ["--samples", "128", "--seq-len", "2048"], 6)][: 1 + a.long]:
        how = ["--type", "Q4_K_M", "--method", "gptq", "--sweeps", "0", *options]
        peak, seconds = anonymous([LLMQ, "quantize", model, *how, "-o", os.path.join(work, "out.gguf"), "--force"])
        what = f"{a.blocks} blocks of 4096 / 11008, vocabulary 32000, gptq, {windows} tokens ({seconds:.0f} s)"
        lines.append(row(f"peak anonymous memory, {what}", f"≤ {limit} GiB", peak / (1 << 30), limit, "GiB", peak / (limit << 30)))
        said = summary("plan", model, *how)["peak_memory_bytes"]
        lines.append(row("the same, against what plan says", "0.85 to 1.15", peak / (1 << 30), said / (1 << 30), "GiB", peak / said))
    return lines


def busy(command):
    """Processor seconds of a command, which other work on the machine lengthens less than its wall time."""
    before = os.times()
    run(command)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def eight(a, work):
    """The default run on one large block, against llama.cpp's imatrix and quantizer on the same file and as many tokens."""
    imatrix, quantize = os.environ.get("LLAMA_IMATRIX"), os.environ.get("LLAMA_QUANTIZE")
    model, source, matrix, out = (os.path.join(work, name) for name in ("eight", "f16.gguf", "imatrix.gguf", "out.gguf"))
    for hidden, ffn, heads, kv in [(2048, 8192, 16, 4), (4096, 14336, 32, 8)][: 1 + a.long]:
        shape = ["--blocks", "1", "--hidden", str(hidden), "--ffn", str(ffn), "--heads", str(heads), "--kv-heads", str(kv), "--vocab", "2048"]
        run([PYTHON, os.path.join(ROOT, "scripts", "random_checkpoint.py"), model, *shape, "--outliers"])
        theirs = None
        if imatrix and quantize and a.text:
            run([LLMQ, "quantize", model, "--type", "F16", "--method", "rtn", "-o", source, "--force"])
            theirs = sum(map(busy, peer(source, matrix, out, "Q4_K_M", a.text, a.windows)))
        for how, target in [([], "≤ 2.0"), (["--effort", "fast"], "≤ 1.3")]:
            ours = busy([LLMQ, "quantize", model, "--type", "Q4_K_M", "--samples", str(a.windows), "--seq-len", "512", *how,
                         "-o", out, "--force"])
            what = f"one block of {hidden} / {ffn}, Q4_K_M, {a.windows} x 512, {' '.join(how) or 'default'}, processor seconds"
            yield row(what, target, ours, theirs, "s", theirs and ours / theirs)


def real(a, work):
    """Whole runs on a pretrained checkpoint, against llama.cpp's imatrix and quantizer: time, and what it buys."""
    imatrix, quantize = os.environ.get("LLAMA_IMATRIX"), os.environ.get("LLAMA_QUANTIZE")
    source, matrix, out = (os.path.join(work, name) for name in ("f16.gguf", "imatrix.gguf", "out.gguf"))
    judge = ["-f", a.judge] if a.judge else []
    far = lambda model: summary("eval", out, "--reference", model, "-c", "512", "--chunks", str(a.chunks), *judge)["kl_divergence"]
    calib = ["--calib", a.text] if a.text else []
    for variant, model, kind in [("factors", a.factors, "Q4_K_M"), ("dither", a.dither, "Q4_0")]:
        what = f"{variant}, {kind}, {a.windows} x 512"
        if not (imatrix and quantize and a.text and model):
            yield row(what, "", missing=f"LLAMA_IMATRIX, LLAMA_QUANTIZE, --text or --{variant}")
            continue
        run([LLMQ, "quantize", model, "--type", "F16", "--method", "rtn", "-o", source, "--force"])
        theirs = sum(map(busy, peer(source, matrix, out, kind, a.text, a.windows)))
        their_kl = far(model)
        for how, target in [([], "≤ 1.0"), (["--effort", "fast"], "")]:
            ours = busy([LLMQ, "quantize", model, "--type", kind, "--samples", str(a.windows), "--seq-len", "512", *calib, *how,
                         "-o", out, "--force"])
            name, kl = f"{what}, {' '.join(how) or 'default'}", far(model)
            yield row(f"{name}, processor seconds", target, ours, theirs, "s", ours / theirs)
            yield row(f"{name}, KL divergence", "", kl, their_kl, "", kl / their_kl)


def gpu(a, work):
    """Kernels on a GPU, and one large block there against the CPU."""
    bench = subprocess.run(["cargo", "bench", "--quiet", "--manifest-path", os.path.join(ROOT, "Cargo.toml"), "-p", "llmq-gpu", "--bench",
                            "gpu", "--", *filter(None, [a.device.partition(":")[2]])], capture_output=True, text=True)
    if bench.returncode:
        yield row("kernels on a GPU", "≥ 40% of its f32 peak", missing=f"device that works: {bench.stderr.strip()[-200:]}")
    for what, shape, rate in re.findall(r"^(gemm.*?|outer.*?)  +(\d.*?)  +([\d.]+) TFLOP/s", bench.stdout, re.M):
        yield row(f"{what}, {shape}", "≥ 40% of its f32 peak" if what == "gemm" else "", float(rate), unit="TFLOP/s")
    model, out = (os.path.join(work, name) for name in ("block", "out.gguf"))
    shape = ["--blocks", "1", "--hidden", "4096", "--ffn", "14336", "--heads", "32", "--kv-heads", "8", "--vocab", "2048"]
    run([PYTHON if os.path.exists(PYTHON) else sys.executable, os.path.join(ROOT, "scripts", "random_checkpoint.py"), model, *shape, "--outliers"])
    command = [LLMQ, "quantize", model, "--type", "Q4_K_M", "--samples", "128", "--seq-len", "1024", "-o", out, "--force", "--device"]

    def seconds(device):
        started = time.perf_counter()
        try:
            done = subprocess.run([*command, device], capture_output=True, text=True, timeout=a.patience)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            sys.exit(f"{shlex.join([*command, device])} failed:\n{done.stderr[-2000:]}")
        return time.perf_counter() - started

    ours, theirs = seconds(a.device), seconds("cpu")
    what = "one block of 4096 / 14336, Q4_K_M, 128 x 1024, default, against the CPU" + ("" if theirs else f" (over {a.patience:.0f} s)")
    yield row(what, "≤ 10 s", ours or a.patience, theirs, "s", ours and theirs and ours / theirs)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", type=lambda text: text.split(","), default=SECTIONS)
    p.add_argument("--model", default=os.path.join(ROOT, "eval", "tiny"))
    p.add_argument("--calib", help="calibration text [default: the one that is built in]")
    p.add_argument("--text", help="text to read [default: the one that is built in]")
    p.add_argument("--factors", help="real: a checkpoint whose channels have made-up factors")
    p.add_argument("--dither", help="real: one whose weights moved by a part of a step")
    p.add_argument("--judge", help="real: text to judge on [default: the one that is built in]")
    p.add_argument("--chunks", type=int, default=24, help="real: windows to judge on")
    p.add_argument("--blocks", type=int, default=2, help="of seven; the whole model has 32")
    p.add_argument("--windows", type=int, default=16, help="of eight and real")
    p.add_argument("--device", default="gpu", help="gpu: which one: gpu, or gpu:NAME")
    p.add_argument("--patience", type=float, default=180, help="gpu: seconds that a block may take")
    p.add_argument("--long", action="store_true", help="seven: with 128 x 2048 tokens, too; eight: the larger block, too")
    p.add_argument("--out", default=os.path.join(ROOT, "eval", "results", "bench.md"))
    a = p.parse_args()
    if not os.path.exists(LLMQ):
        sys.exit("run `cargo build --release` first")
    head = [
        "# Speed and memory, side by side", "", *header(), "",
        "| what | llmq | the other | ratio | target |", "|---|---|---|---|---|",
    ]
    lines = []
    os.makedirs(os.path.dirname(a.out), exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for name in a.only:
            of = dict(products=lambda: products(a), eval=lambda: evaluation(a, work), rtn=lambda: rtn(a, work),
                      gptq=lambda: gptq(a, work), memory=lambda: memory(a, work), seven=lambda: seven(a, work),
                      eight=lambda: eight(a, work), real=lambda: real(a, work), gpu=lambda: gpu(a, work))[name]
            for line in of():
                print(line, flush=True)
                lines.append(line)
            # Anew after each section: some of them take long.
            with open(a.out, "w", encoding="utf8") as file:
                file.write("\n".join(head + lines) + "\n")


main()
