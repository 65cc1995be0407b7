"""Shows a float model and what llmq made of it to the packages onnx and onnxruntime.

Usage: onnx_compare.py FLOAT OURS REDUCE_RANGE(0|1) BATCH LENGTH. Prints JSON: "inputs" {name: {dims, data}}, "output" of OURS (the first
one, flat), the signal-to-noise ratios in dB of OURS and of ONNX Runtime's own quantize_dynamic(per_channel=True), and its size.
"""

import json
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

original, ours, reduce_range, batch, length = sys.argv[1], sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]), int(sys.argv[5])
ort.set_default_logger_severity(3)
FIXED = {"attention_mask": 1, "token_type_ids": 0}
generator = np.random.default_rng(7)
onnx.checker.check_model(ours, full_check=True)


def run(path, inputs):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    # Without VNNI, sums of two products of full range would be cut off; the verdict must not depend on the machine.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def sqnr(signal, other):
    noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(signal, other))
    return 10 * np.log10(sum(float((a**2).sum()) for a in signal) / max(noise, 1e-30))


inputs = {}
for value in onnx.load(original, load_external_data=False).graph.input:
    dims = [d.dim_value or (batch if at == 0 else length) for at, d in enumerate(value.type.tensor_type.shape.dim)]
    whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    if value.name in FIXED:
        inputs[value.name] = np.full(dims, FIXED[value.name])
    else:
        inputs[value.name] = generator.integers(0, 1000, dims) if whole else generator.standard_normal(dims).astype(np.float32)

signal = run(original, inputs)
mine = run(ours, inputs)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "theirs.onnx")
    quantize_dynamic(original, path, per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8)
    theirs, size = run(path, inputs), os.path.getsize(path)
print(json.dumps({
    "inputs": {name: {"dims": value.shape, "data": value.ravel().tolist()} for name, value in inputs.items()},
    "output": mine[0].ravel().tolist(),
    "sqnr_ours": sqnr(signal, mine),
    "sqnr_theirs": sqnr(signal, theirs),
    "bytes_theirs": size,
}))
