#!/usr/bin/env python3
"""Makes a Llama-shaped checkpoint of random BF16 weights, of any size, for benchmarks: nothing of it is committed.

  .consumers/python/bin/python scripts/random_checkpoint.py OUT_DIR [--blocks 4] [--hidden 1024] [--ffn 2816] [--heads 16] [--kv-heads 8]
      [--vocab 2048] [--experts 0] [--used 2] [--outliers]

With experts it is one of Mixtral's shape, and --ffn is the width of an expert. With --outliers activations are more like those of
trained models: tokens share a few directions, a few channels are many times as large as the others, and weights have tails.
The tokenizer is that of eval/tiny. Weights are written one tensor at a time.
"""
import argparse, json, os, shutil, struct
import numpy as np

a = argparse.ArgumentParser()
a.add_argument("out")
a.add_argument("--blocks", type=int, default=4)
a.add_argument("--hidden", type=int, default=1024)
a.add_argument("--ffn", type=int, default=2816)
a.add_argument("--heads", type=int, default=16)
a.add_argument("--kv-heads", type=int, default=8)
a.add_argument("--vocab", type=int, help="rows of the embedding, of which the tokenizer may have fewer [default: as many]")
a.add_argument("--experts", type=int, default=0)
a.add_argument("--used", type=int, default=2)
a.add_argument("--outliers", action="store_true")
a = a.parse_args()

tiny = os.path.join(os.path.dirname(__file__), "..", "eval", "tiny")
os.makedirs(a.out, exist_ok=True)
for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
    shutil.copy(os.path.join(tiny, name), a.out)
config = json.load(open(os.path.join(tiny, "config.json")))
head_dim = a.hidden // a.heads
config |= dict(hidden_size=a.hidden, intermediate_size=a.ffn, num_hidden_layers=a.blocks, num_attention_heads=a.heads,
               num_key_value_heads=a.kv_heads, head_dim=head_dim, max_position_embeddings=4096)
if a.vocab:
    config["vocab_size"] = a.vocab
if a.experts:
    config |= dict(architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=a.experts, num_experts_per_tok=a.used)
json.dump(config, open(os.path.join(a.out, "config.json"), "w"), indent=1)

h, f, q, kv = a.hidden, a.ffn, a.heads * head_dim, a.kv_heads * head_dim
shapes = {"model.embed_tokens.weight": (config["vocab_size"], h), "model.norm.weight": (h,)}
for i in range(a.blocks):
    p = f"model.layers.{i}."
    shapes |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,),
               p + "self_attn.q_proj.weight": (q, h), p + "self_attn.k_proj.weight": (kv, h),
               p + "self_attn.v_proj.weight": (kv, h), p + "self_attn.o_proj.weight": (h, q)}
    if a.experts:
        p += "block_sparse_moe."
        shapes[p + "gate.weight"] = (a.experts, h)
        for e in range(a.experts):
            own = f"{p}experts.{e}."
            shapes |= {own + "w1.weight": (f, h), own + "w3.weight": (f, h), own + "w2.weight": (h, f)}
    else:
        shapes |= {p + "mlp.gate_proj.weight": (f, h), p + "mlp.up_proj.weight": (f, h), p + "mlp.down_proj.weight": (h, f)}
header, at = {}, 0
for name, shape in shapes.items():
    n = 2 * int(np.prod(shape))
    header[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, at + n])
    at += n
header = json.dumps(header).encode()
random = np.random.default_rng(0)


def numbers(name, shape):
    """Of a tensor, in single precision."""
    normal = lambda *shape: random.standard_normal(shape, np.float32)
    if "norm" in name:
        # One channel in 200 is loud.
        return np.exp(0.3 * normal(*shape)) * np.where(random.random(shape) < 0.005, 10, 1) if a.outliers else np.ones(shape)
    x = normal(*shape) / np.float32(shape[-1] ** 0.5)
    if a.outliers and "embed" in name:
        x += normal(shape[0], 64) @ normal(64, shape[1]) / np.float32(8 * shape[-1] ** 0.5)
    elif a.outliers:
        x *= (0.8 + 0.2 * x * x * shape[-1]) * np.exp(0.3 * normal(shape[0], 1))
    return x


with open(os.path.join(a.out, "model.safetensors"), "wb") as out:
    out.write(struct.pack("<Q", len(header)) + header)
    for name, shape in shapes.items():
        out.write((numbers(name, shape).astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes())
