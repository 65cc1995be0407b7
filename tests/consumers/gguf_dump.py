#!/usr/bin/env python3
"""Reads a GGUF with the PyPI package gguf: its metadata and tensors, and every tensor's values in float32.

    .consumers/python/bin/python tests/consumers/gguf_dump.py FILE OUT_DIR

Needs scripts/setup-consumers.sh. Prints one JSON object:

    metadata   key -> value, arrays included (gguf adds GGUF.version, GGUF.tensor_count and GGUF.kv_count)
    tensors    in file order: name, shape (ggml order, so a linear is [in, out]), type ("Q4_0"), n_bytes

and writes each tensor to OUT_DIR/<name>.f32: little-endian float32, row-major in Hugging Face's order, dequantized
where its type is a quantized one. Exits 1 with a message when the file cannot be read or a type is not known to gguf.
"""
import json
import os
import sys

from gguf import GGUFReader
from gguf.quants import dequantize


def dump(path, out_dir):
    reader = GGUFReader(path)
    os.makedirs(out_dir, exist_ok=True)
    tensors = []
    for t in reader.tensors:
        dequantize(t.data, t.tensor_type).astype("<f4", copy=False).tofile(os.path.join(out_dir, t.name + ".f32"))
        tensors.append(dict(name=t.name, shape=t.shape.tolist(), type=t.tensor_type.name, n_bytes=int(t.n_bytes)))
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    json.dump(dict(metadata=metadata, tensors=tensors), sys.stdout)
    print()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: gguf_dump.py FILE OUT_DIR")
    try:
        dump(*sys.argv[1:])
    except (OSError, ValueError, LookupError, NotImplementedError) as error:
        sys.exit(f"gguf_dump.py: {sys.argv[1]}: {error}")
