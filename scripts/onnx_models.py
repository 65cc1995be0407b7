#!/usr/bin/env python3
"""Exports the ONNX models that `llmq int8` is measured on, with random weights: ResNet-18 and -50, MobileNetV2 and ViT-B/16 of torchvision,
and an encoder of BERT's kind of transformers, or a real one from a folder.

  scripts/onnx_models.py OUT_DIR [NAME...] [--bert CHECKPOINT_DIR]

Needs the packages torch, torchvision, transformers and onnx. The tests do without: they build their small models themselves.
"""

import argparse
import pathlib

import torch


def export(model, inputs, names, outputs, path, open_dims):
    model.eval()
    with torch.no_grad():
        torch.onnx.export(
            model, inputs, path, dynamo=False, opset_version=17, input_names=names, output_names=outputs,
            dynamic_axes={name: open_dims for name in names},
        )
    print(path, path.stat().st_size, "bytes", flush=True)


def vision(name):
    import torchvision.models

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    # Statistics as after some training, so that norms are no identity.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model, (torch.randn(1, 3, 224, 224),), ["image"], ["logits"], {0: "batch"}


class Hidden(torch.nn.Module):
    """The last hidden state alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**inputs).last_hidden_state


def bert(checkpoint):
    from transformers import AutoModel, BertConfig, BertModel

    torch.manual_seed(0)
    if checkpoint:
        model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)
    else:
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        model = BertModel(BertConfig(**sizes, attn_implementation="eager"), add_pooling_layer=False)
    ids = torch.randint(1000, 2000, (1, 32))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    return Hidden(model), inputs, names, ["hidden"], {0: "batch", 1: "length"}


def main():
    known = ["resnet18", "resnet50", "mobilenet_v2", "vit_b_16", "bert"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} [default: all]")
    parser.add_argument("--bert", type=pathlib.Path, help="an encoder's checkpoint folder, instead of random weights")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or known:
        if name not in known:
            parser.error(f"{name} is none of {', '.join(known)}")
        model, inputs, names, outputs, open_dims = bert(args.bert) if name == "bert" else vision(name)
        export(model, inputs, names, outputs, args.out / f"{name}.onnx", open_dims)


if __name__ == "__main__":
    main()
