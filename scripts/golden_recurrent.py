#!/usr/bin/env python3
"""What transformers computes for mixers with a state: the golden files of kernels/src/recurrent/golden.

  scripts/golden_recurrent.py

Needs a python with torch and transformers (5.24 or newer); the tests that read the files need neither. A file holds the numbers of
the output, position by position, and then those of the state behind the last one. Inputs come from a formula (`made` below), so that
the tests make the same without any file.
"""
import math, os
import torch
from transformers.models.nemotron_h.modeling_nemotron_h import mamba2_chunk_scan, mamba2_selective_state_update
from transformers.models.qwen3_next.modeling_qwen3_next import (causal_conv1d_fn, torch_chunk_gated_delta_rule,
                                                                torch_recurrent_gated_delta_rule)

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "kernels/src/recurrent/golden")


def made(seed, shape, lo=-1.0, hi=1.0):
    """Computed in float64, and rounded to float32."""
    i = torch.arange(1, math.prod(shape) + 1)
    return (lo + (hi - lo) * (i * (7919 + 2 * seed) % 1009) / 1008.0).float().reshape(shape)


def write(name, *tensors):
    os.makedirs(FOLDER, exist_ok=True)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).tolist()
    lines = [" ".join(f"{x:.9g}" for x in flat[i:i + 10]) for i in range(0, len(flat), 10)]
    with open(os.path.join(FOLDER, name + ".txt"), "w") as file:
        file.write("\n".join(lines) + "\n")


def agree(a, b):
    assert (a - b).abs().max() < 1e-5, "transformers' two ways differ"


def gated_delta_rule(n=70, key_heads=2, value_heads=4, dk=4, dv=3):
    q, k, v = made(1, (1, n, key_heads, dk)), made(2, (1, n, key_heads, dk)), made(3, (1, n, value_heads, dv))
    g, beta = made(4, (1, n, value_heads), -0.2, 0.0), made(5, (1, n, value_heads), 0.0, 1.0)
    state = made(6, (1, value_heads, dk, dv))
    how = dict(g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
    out, last = torch_recurrent_gated_delta_rule(q, k, v, **how)
    chunked, chunked_last = torch_chunk_gated_delta_rule(q, k, v, **how)
    agree(out, chunked), agree(last, chunked_last)
    write("gated_delta_rule", out, last)


def mamba2(n=70, heads=4, head_dim=3, groups=2, size=4):
    x, dt = made(1, (1, n, heads, head_dim)), made(2, (1, n, heads), 0.0, 0.6)
    b, c = made(3, (1, n, groups, size)), made(4, (1, n, groups, size))
    a, d = made(5, (heads,), -2.0, -0.1), made(6, (heads,))
    state = made(7, (1, heads, head_dim, size))
    out, last = mamba2_chunk_scan(x, dt, a, b, c, chunk_size=16, D=d, initial_states=state, return_final_states=True)
    for t in range(n):
        # It wants dt and D for each number of a head, A for each of the state, and writes the state that it is given.
        wide = [y[..., None].expand(*y.shape, head_dim) for y in (dt[:, t], d, a)]
        step = mamba2_selective_state_update(state, x[:, t], wide[0], wide[2][..., None].expand(-1, -1, size), b[:, t], c[:, t], wide[1])
        agree(step, out[:, t])
    agree(last, state)
    write("mamba2", out, last)


def causal_conv(n=9, channels=5, taps=4):
    x, weight, bias = made(1, (n, channels)), made(2, (channels, taps)), made(3, (channels,))
    out = causal_conv1d_fn(x.t()[None], weight, bias, activation="silu")[0].t()
    write("causal_conv", out)


with torch.no_grad():
    gated_delta_rule(), mamba2(), causal_conv()
