"""Shows a model in the QDQ form to the packages onnx and onnxruntime.

Usage: onnx_fused.py MODEL. Exits 1 if the checker finds anything or ONNX Runtime cannot load it; prints as JSON how many nodes of each
operator ONNX Runtime runs for it.
"""

import collections
import json
import os
import sys
import tempfile

import onnx
import onnxruntime as ort

ort.set_default_logger_severity(3)
onnx.checker.check_model(sys.argv[1], full_check=True)
with tempfile.TemporaryDirectory() as folder:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
    ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    print(json.dumps(collections.Counter(node.op_type for node in nodes)))
