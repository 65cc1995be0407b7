"""Shows a float model and what `llmq int8 static` made of it to the packages onnx and onnxruntime.

Usage: onnx_static.py FLOAT OURS CALIB.npz TEST.npz REDUCE_RANGE(0|1). Prints JSON: "outputs" of OURS on TEST (the first one, flat),
the operators that ONNX Runtime runs for it, and the signal-to-noise ratios in dB on TEST of OURS and of ONNX Runtime's own
quantize_static (U8S8, per channel) with each of its calibrators.
"""

import collections
import contextlib
import json
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

original, ours, calib, test, reduce_range = *sys.argv[1:5], sys.argv[5] == "1"
ort.set_default_logger_severity(3)
onnx.checker.check_model(ours, full_check=True)


def samples(path):
    arrays = {name: x for name, x in np.load(path).items() if name != "labels"}
    count = len(next(iter(arrays.values())))
    return [{name: x[i : i + 1] for name, x in arrays.items()} for i in range(count)]


class Reader(CalibrationDataReader):
    def __init__(self):
        self.all = iter(samples(calib))

    def get_next(self):
        return next(self.all, None)


def outputs(path, optimized=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if optimized:
        options.optimized_model_filepath = optimized
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, sample)[0].ravel() for sample in samples(test)])


def sqnr(signal, other):
    return float(10 * np.log10((signal**2).sum() / max(float(((signal - other) ** 2).sum()), 1e-30)))


with tempfile.TemporaryDirectory() as folder:
    path = lambda name: os.path.join(folder, name)
    wanted = outputs(original)
    found = outputs(ours, path("optimized.onnx"))
    ops = collections.Counter(node.op_type for node in onnx.load(path("optimized.onnx")).graph.node)
    quant_pre_process(original, path("prepared.onnx"), skip_symbolic_shape=True)
    theirs = {}
    for method in CalibrationMethod:
        if method == CalibrationMethod.Distribution:  # for 8-bit floats only
            continue
        try:
            # It tells on standard output what it does, where only the JSON belongs.
            with contextlib.redirect_stdout(sys.stderr):
                quantize_static(
                    path("prepared.onnx"),
                    path("theirs.onnx"),
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=reduce_range,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=method,
                )
            theirs[method.name] = sqnr(wanted, outputs(path("theirs.onnx")))
        except Exception as error:  # said, not hidden: the caller decides
            theirs[method.name] = str(error)
    print(json.dumps({"outputs": found.tolist(), "ops": ops, "sqnr": sqnr(wanted, found), "theirs": theirs}))
