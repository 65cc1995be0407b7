#!/usr/bin/env python3
"""What INT8 costs models that have learned something, and what `--refine` and `--qat` get back of it, by the truth of labels.

    scripts/int8_trained.py LLMQ [--models cnn,bert] [--keep DIR] [--table eval/results/int8-trained.md]

Needs torch, transformers and onnx. Everything is seeded. A small CNN and a small BERT learn synthetic labelled data, and are exported
twice: as they are, and with channels scaled apart. That leaves the function as it is (what one layer multiplies, the next divides: the
inverse of Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", equation 5), but one scale for
all channels of an activation then fits few of them. A second loss is provoked by a calibrator that makes ranges too narrow. Each graph
is quantized by `int8 static` alone, with `--refine` if the program has it, and with `--qat`, and judged by `int8 validate` on 10,000
samples that were in neither training nor calibration. Exits 1 if a provoked loss is less than a point, or if one of the ways gets
nothing back of any of a model's losses.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from torch import nn

import machine

TRAINING, CALIBRATION, TEST = 20000, 256, 10000
EPOCHS = {"cnn": 4, "bert": 3}
# A calibrator that keeps this part of all numbers: the rest is cut off.
NARROW = {"cnn": "90", "bert": "60"}
# Channels are multiplied by numbers between this and its inverse.
APART = {"cnn": 14, "bert": 30}


def images(count, seed):
    """Ten smooth patterns, moved around, loud or quiet, under noise: x [n, 3, 16, 16], labels [n]."""
    patterns = np.random.default_rng(0)
    y, x = np.mgrid[0:16, 0:16] * (2 * math.pi / 16)
    waves = np.zeros((10, 3, 16, 16))
    for pattern in waves.reshape(-1, 16, 16):
        for _ in range(3):
            a, b = patterns.integers(-3, 4, 2)
            pattern += patterns.normal() * np.sin(a * x + b * y + patterns.uniform(0, 2 * math.pi))
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    out = waves[labels]
    for at, (down, across) in enumerate(random.integers(0, 16, (count, 2))):
        out[at] = np.roll(out[at], (down, across), (1, 2))
    out *= random.uniform(0.3, 1.2, (count, 1, 1, 1))
    out += random.normal(0, 2.5, out.shape)
    return {"image": out.astype(np.float32)}, labels


WORDS, TOPICS, LENGTH = 400, 8, 24


def sentences(count, seed):
    """Each topic has words of its own, the label is the topic with most words between those of others: ids [n, 24], labels [n]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, TOPICS, count)
    topic = random.integers(0, TOPICS, (count, LENGTH))
    topic = np.where(random.random((count, LENGTH)) < 0.35, labels[:, None], topic)
    ids = 2 + topic * 40 + random.integers(0, 40, (count, LENGTH))
    common = random.random((count, LENGTH)) < 0.3
    ids[common] = random.integers(2 + 40 * TOPICS, WORDS, int(common.sum()))
    ids[:, 0] = 1
    return {"input_ids": ids}, labels


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one = layer(width, width, 1)
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return torch.relu(x + self.two(self.one(x)))


def layer(inputs, outputs, stride):
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def cnn():
    return nn.Sequential(
        layer(3, 16, 1), layer(16, 32, 2), Block(32), layer(32, 48, 2), Block(48), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(48, 10),
    )


class Classifier(nn.Module):
    """BERT, and its logits alone."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        self.bert = BertForSequenceClassification(BertConfig(
            vocab_size=WORDS, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
            max_position_embeddings=LENGTH, num_labels=TOPICS, attn_implementation="eager",
        ))

    def forward(self, input_ids):
        return self.bert(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits


def scale_apart(name, model):
    """Multiplies channels by factors and divides what reads them."""
    generator = torch.Generator().manual_seed(5)

    def factors(n):
        return APART[name] ** (2 * torch.rand(n, generator=generator) - 1)

    with torch.no_grad():
        if name == "cnn":
            # ReLU lets positive factors through.
            for before, after in [(model[0][1], model[1][0]), (model[2].one[1], model[2].two[0]), (model[4].one[1], model[4].two[0])]:
                s = factors(before.num_features)
                before.weight *= s
                before.bias *= s
                after.weight /= s[None, :, None, None]
        else:
            # Attention mixes values of one channel: factors come through.
            for block in model.bert.bert.encoder.layer:
                value, after = block.attention.self.value, block.attention.output.dense
                s = factors(value.out_features)
                value.weight *= s[:, None]
                value.bias *= s
                after.weight /= s[None, :]


def logits(model, inputs):
    model.eval()
    (x,) = inputs.values()
    with torch.no_grad():
        return torch.cat([model(torch.from_numpy(part)) for part in np.array_split(x, max(1, len(x) // 500))]).numpy()


def learned(name, data, epochs):
    torch.manual_seed(1)
    model = cnn() if name == "cnn" else Classifier()
    inputs, labels = data(TRAINING, 1)
    (x,), y = inputs.values(), torch.from_numpy(labels)
    x = torch.from_numpy(x)
    steps = epochs * (len(x) // 100)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3 if name == "cnn" else 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for batch in order.split(100):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"{name}: epoch {epoch + 1}, loss {loss.item():.3f}", file=sys.stderr)
    return model


def export(model, inputs, path):
    ((name, x),) = inputs.items()
    model.eval()
    axes = {name: {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(model, (torch.from_numpy(x[:1]),), path, dynamo=False, opset_version=17, input_names=[name],
                      output_names=["logits"], dynamic_axes=axes)


def made(name, folder):
    """Paths of calibration inputs, labelled test inputs, the graph, and the graph with channels apart; made if not there."""
    paths = [folder / f"{name}{end}" for end in ("-calib.npz", "-test.npz", ".onnx", "-apart.onnx")]
    if paths[-1].exists():
        return paths
    data = images if name == "cnn" else sentences
    model = learned(name, data, EPOCHS[name])
    inputs, labels = data(TEST, 3)
    np.savez(paths[0], **data(CALIBRATION, 2)[0])
    np.savez(paths[1], **inputs, labels=labels)
    before = logits(model, inputs)
    print(f"{name}: {100 * (before.argmax(1) == labels).mean():.2f}% of the test samples", file=sys.stderr)
    export(model, inputs, paths[2])
    scale_apart(name, model)
    after = logits(model, inputs)
    assert np.abs(before - after).max() < 1e-3 * np.abs(before).max(), "scaling changed the function"
    export(model, inputs, paths[3])
    return paths


def told(*command):
    """The summary that a run of llmq prints, and its seconds."""
    started = time.monotonic()
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llmq")
    parser.add_argument("--models", default="cnn,bert")
    parser.add_argument("--keep", type=pathlib.Path, help="where models and samples stay, and are taken from if they are there")
    parser.add_argument("--table", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine.LLMQ = args.llmq
    head = machine.header()
    has_refine = "--refine" in subprocess.run([args.llmq, "int8", "static", "--help"], capture_output=True, text=True).stdout
    ways = {"static": [], **({"--refine": ["--refine"]} if has_refine else {}), "--qat": ["--qat"]}
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.models.split(","):
            calib, test, graphs, apart = made(name, folder)
            helped = set()
            narrow = ["--calibrator", "percentile", "--percentile", NARROW[name]]
            for loss, graph, options in [("none", graphs, []), ("ranges too narrow", graphs, narrow), ("channels apart", apart, [])]:
                results = {}
                for way, more in ways.items():
                    out = folder / f"{name}-int8.onnx"
                    _, seconds = told(args.llmq, "int8", "static", graph, "--calib", calib, "-o", out, "--force", *options, *more)
                    judged, _ = told(args.llmq, "int8", "validate", graph, out, "--data", test, "--task", "image" if name == "cnn" else "nlp")
                    results[way] = verdict = judged["verdict"]
                    rows.append((name, loss, way, judged, verdict, seconds))
                    print(*rows[-1][:3], f"{100 * verdict['accuracy']:.2f}%", verdict["grade"], f"{seconds:.0f} s", file=sys.stderr)
                if loss != "none":
                    lost = results["static"]["loss"]
                    failed += [f"{name}: no loss by {loss}"] if lost < 0.01 else []
                    helped |= {way for way, verdict in results.items() if verdict["loss"] < lost}
            failed += [f"{name}: {way} gets nothing back" for way in ways if way not in helped | {"static"}]
    print(table := "\n".join([*document(head, rows, has_refine), ""]))
    if args.table:
        args.table.write_text(table)
    sys.exit("; ".join(failed) if failed else 0)


def document(head, rows, has_refine):
    yield "# INT8 on models that have learned something, judged by labels"
    yield ""
    yield from head
    yield "- Samples: 20,000 to train with, 256 to calibrate and to fine-tune with (no labels), 10,000 others to judge by; all synthetic"
    yield "- Provoked losses: *ranges too narrow*: `--calibrator percentile --percentile " \
          f"{NARROW['cnn']}` (CNN) and `{NARROW['bert']}` (BERT), which cuts the rest of all activations off; *channels apart*: channels are " \
          f"multiplied by factors from 1/{APART['cnn']} to {APART['cnn']} (CNN) or 1/{APART['bert']} to {APART['bert']} (BERT) and divided by " \
              "them in the next layer, which changes nothing in floats"
    if not has_refine:
        yield "- `--refine` was not in the program that was measured"
    yield ""
    yield "| model | provoked | way | SQNR, dB | float | INT8 | loss, points (95% interval) | verdict | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, loss, way, judged, verdict, seconds in rows:
        low, high = verdict["interval"]
        grade = verdict["grade"] if verdict["grade"] != "inconclusive" else f"inconclusive, {' to '.join(verdict['between'])}"
        yield f"| {name} | {loss} | {way} | {judged['outputs'][0]['sqnr']:.2f} | {100 * verdict['original_accuracy']:.2f}% " \
              f"| {100 * verdict['accuracy']:.2f}% | {100 * verdict['loss']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) | {grade} | {seconds:.0f} |"


main()
