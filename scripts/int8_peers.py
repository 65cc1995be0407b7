#!/usr/bin/env python3
"""`llmq int8 static` beside ONNX Runtime's quantize_static, on torchvision's architectures with random weights.

    scripts/int8_peers.py LLMQ [MODEL ...] > table.md

Needs torch, torchvision, onnx and onnxruntime. For each model: the graph by torch.onnx.export(dynamo=False), inputs that are smooth
patterns and noise, 32 to calibrate and 8 to judge on; both quantizers with U8 activations and S8 weights per channel, and as many bits
of weights as this CPU wants; SQNR of the first output, latency in ONNX Runtime (batch 1, one thread, median of 15), and time and peak
memory of quantizing, each in a process of its own. Random weights make activations unlike those of a trained network: the figures
compare two quantizers on the same graph, and say nothing about accuracy.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np

CALIBRATION, TEST, RUNS = 32, 8, 15
MODELS = ["resnet18", "resnet50", "mobilenet_v2", "vit_b_16"]
THEIRS = """
import sys, time, resource, numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
source, calib, out, method, reduced = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self):
        self.x = iter(np.load(calib)["input"])
    def get_next(self):
        x = next(self.x, None)
        return None if x is None else {"input": x[None]}
quant_pre_process(source, out + ".prepared", skip_symbolic_shape=True)
quantize_static(out + ".prepared", out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=reduced == "1",
    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method])
"""

def images(count, seed):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:224, 0:224].astype(np.float32) / 224
    out = np.empty((count, 3, 224, 224), np.float32)
    for image in out:
        for channel in image:
            a, b, c = random.uniform(1, 30, 3)
            channel[:] = np.sin(a * x + c) + np.cos(b * y) + random.normal(0, 0.3, (224, 224))
        image *= random.uniform(0.3, 1.2)
    return out

def measured(command):
    """Seconds and peak megabytes of a process."""
    # A small process in between: Linux counts what the parent had in memory when it forked.
    watch = "import resource, subprocess, sys; c = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; " \
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(c)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", watch, *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return time.monotonic() - started, int(done.stdout) / 1024


def session(path, optimized=None):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = optimized
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

def judged(path, wanted, test):
    found = session(path)
    outputs = np.concatenate([found.run(None, {"input": x[None]})[0] for x in test])
    times = []
    for _ in range(RUNS):
        started = time.monotonic()
        found.run(None, {"input": test[:1]})
        times.append(1000 * (time.monotonic() - started))
    noise = float(((wanted - outputs) ** 2).sum())
    return 10 * np.log10(float((wanted**2).sum()) / max(noise, 1e-30)), float(np.median(times))

def float_convolutions(path, folder):
    import onnx

    optimized = os.path.join(folder, "optimized.onnx")
    session(path, optimized)
    ops = [node.op_type for node in onnx.load(optimized).graph.node]
    return sum(op in ("Conv", "FusedConv") for op in ops), sum(op == "QLinearConv" for op in ops)

def main():
    llmq, names = sys.argv[1], sys.argv[2:] or MODELS
    import torch
    import torchvision

    reduced = "0" if any(flag in open("/proc/cpuinfo").read() for flag in ("avx512_vnni", "avx_vnni")) else "1"
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    print(f"{cpu}, {os.cpu_count()} cores; weights of {7 if reduced == '1' else 8} bits\n")
    print("| model | quantizer | SQNR, dB | latency, ms | seconds | peak MB | convolutions float / integer |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = lambda file: os.path.join(folder, file)
            torch.manual_seed(1)
            model = torchvision.models.get_model(name, weights=None).eval()
            calib, test = images(CALIBRATION, 1), images(TEST, 2)
            # Statistics of the data instead of means of 0 and variances of 1, with which activations would vanish or explode.
            with torch.no_grad():
                for layer in model.modules():
                    if isinstance(layer, torch.nn.BatchNorm2d):
                        layer.momentum = None
                model.train()
                model(torch.from_numpy(calib[:8]))
                model.eval()
            torch.onnx.export(model, torch.from_numpy(test[:1]), path("float.onnx"), dynamo=False, opset_version=17,
                              input_names=["input"], output_names=["output"])
            np.savez(path("calib.npz"), input=calib)
            baseline = session(path("float.onnx"))
            wanted = np.concatenate([baseline.run(None, {"input": x[None]})[0] for x in test])
            rows = [("float", path("float.onnx"), None)]
            for calibrator in ("minmax", "average", "percentile", "entropy", "mse"):
                out = path(f"{calibrator}.onnx")
                cost = measured([llmq, "int8", "static", path("float.onnx"), "--calib", path("calib.npz"), "-o", out,
                                 "--calibrator", calibrator])
                rows.append((f"llmq {calibrator}", out, cost))
            for method in ("MinMax", "Percentile", "Entropy"):
                out = path(f"theirs-{method}.onnx")
                try:
                    cost = measured([sys.executable, "-c", THEIRS, path("float.onnx"), path("calib.npz"), out, method, reduced])
                except RuntimeError as error:
                    print(f"{name}, quantize_static {method}: {error}", file=sys.stderr)
                    continue
                rows.append((f"quantize_static {method}", out, cost))
            for quantizer, file, cost in rows:
                sqnr, latency = judged(file, wanted, test)
                floats, integers = float_convolutions(file, folder)
                seconds, memory = cost or (0, 0)
                shown = [f"{sqnr:.2f}" if cost else "", f"{latency:.1f}", f"{seconds:.1f}" if cost else "", f"{memory:.0f}" if cost else ""]
                print(f"| {name} | {quantizer} | {' | '.join(shown)} | {floats} / {integers} |", flush=True)

main()
