"""Times models with ONNX Runtime: takes a question as JSON on standard input, gives the answer as JSON on standard output.

Question: {"models": [PATH...], "optimized": [PATH...], "inputs": [{"name", "type", "dims", "whole"}...], "runs": N, "threads": N or 0}
Answer: {"version": V, "seconds": [[...] per model], "optimized": [whether ONNX Runtime saved its own graph, per model]}
"""

import json
import sys
import time

import numpy
import onnxruntime

onnxruntime.set_default_logger_severity(3)
question = json.load(sys.stdin)
generator = numpy.random.default_rng(0)


def value(entry):
    if entry["type"] == "float32":
        return generator.standard_normal(entry["dims"]).astype(numpy.float32)
    if entry["whole"]:
        return numpy.array(entry["whole"], entry["type"]).reshape(entry["dims"])
    # Valid as an id, as a type and as a mask.
    return numpy.ones(entry["dims"], entry["type"])


def session(path, optimized):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = question["threads"]
    if optimized:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


sessions, saved = [], []
for path, optimized in zip(question["models"], question["optimized"]):
    try:
        sessions.append(session(path, optimized))
        saved.append(True)
    except Exception:  # Too large to be saved, perhaps; if not, this fails as well and says why.
        sessions.append(session(path, None))
        saved.append(False)
inputs = {entry["name"]: value(entry) for entry in question["inputs"]}
seconds = [[] for _ in sessions]
for run in range(question["runs"] + 3):
    # In turn, so that what else the machine does hits all alike.
    for times, one in zip(seconds, sessions):
        start = time.perf_counter()
        one.run(None, inputs)
        if run >= 3:
            times.append(time.perf_counter() - start)
json.dump({"version": onnxruntime.__version__, "seconds": seconds, "optimized": saved}, sys.stdout)
