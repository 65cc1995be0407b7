#!/usr/bin/env python3
"""Unpacks the layers of a GPTQ, AWQ or compressed-tensors folder with nothing but numpy, from the formats' public descriptions.

    .consumers/python/bin/python tests/consumers/folder_dump.py FOLDER OUT_DIR

Writes each weight to OUT_DIR/<name>.f32: little-endian float32, row-major, [out, in].
"""
import json
import os
import sys

import numpy as np

DTYPES = dict(I32="<i4", I64="<i8", F16="<f2", F32="<f4")


def tensors(path):
    data = open(path, "rb").read()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in DTYPES:
            continue
        first, last = (8 + size + at for at in entry["data_offsets"])
        yield name, np.frombuffer(data[first:last], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def unpack(words, bits, axis, order=None):
    """Every word becomes 32 / bits numbers along an axis, the lowest bits first."""
    per = 32 // bits
    words = np.moveaxis(words.astype(np.uint32), axis, -1)
    places = np.array(order if order else range(per), dtype=np.uint32) * bits
    numbers = (words[..., None] >> places & (2**bits - 1)).reshape(*words.shape[:-1], -1)
    return np.moveaxis(numbers, -1, axis).astype(np.float32)


def weights(folder):
    config = json.load(open(os.path.join(folder, "config.json")))["quantization_config"]
    method, found = config["quant_method"], dict(tensors(os.path.join(folder, "model.safetensors")))
    for name in list(found):
        stem, _, last = name.rpartition(".")
        if last == "qweight" and method == "gptq":
            bits = config["bits"]
            q = unpack(found[name], bits, 0)
            zeros = unpack(found[stem + ".qzeros"], bits, 1) + 1
            group = found[stem + ".g_idx"]
        elif last == "qweight" and method == "awq":
            order = [0, 4, 1, 5, 2, 6, 3, 7]
            q = unpack(found[name], 4, 1, order)
            zeros = unpack(found[stem + ".qzeros"], 4, 1, order)
            group = np.arange(len(q)) // config["group_size"]
        elif last == "weight_packed":
            scheme = config["config_groups"]["group_0"]["weights"]
            bits = scheme["num_bits"]
            q = unpack(found[name], bits, 1).T
            group = np.arange(len(q)) // scheme["group_size"]
            scales = found[stem + ".weight_scale"].astype(np.float32).T
            middle = np.full_like(scales, 2 ** (bits - 1))
            zeros = middle if scheme["symmetric"] else unpack(found[stem + ".weight_zero_point"], bits, 0).T
            yield stem, ((q - zeros[group]) * scales[group]).T
            continue
        else:
            continue
        scales = found[stem + ".scales"].astype(np.float32)
        yield stem, ((q - zeros[group]) * scales[group]).T


if __name__ == "__main__":
    folder, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    for name, w in weights(folder):
        np.ascontiguousarray(w, dtype="<f4").tofile(os.path.join(out, name + ".weight.f32"))
