#!/usr/bin/env python3
"""What transformers makes of a small model of each architecture: the golden files of tests/architectures.

  scripts/golden_architectures.py [NAME...]

Needs a python with torch and transformers (5 or newer); the tests that read the files need neither. A file holds the
configuration, the keys that llama.cpp's converter and loader have for it (`keys` below), the names and shapes of the tensors as
transformers saves them, from which formula their numbers come, some windows of tokens, and for each token but the first of a
window its log-probability in float32. The numbers are a hash of a tensor's name and of an element's place (`numbers`
below), so that the test makes the same checkpoint without any file.
"""
import json, math, os, shutil, sys, tempfile
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VOCAB, LENGTH, WINDOWS = 2048, 48, 2

USUAL = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, bos_token_id=2046, eos_token_id=2047, pad_token_id=None)


def usual(**changes):
    return {**USUAL, **changes}


MOE = dict(moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2)
MLA = dict(kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32, moe_intermediate_size=64,
           first_k_dense_replace=1, num_key_value_heads=4)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=10000.0)
LONG = dict(rope_type="longrope", short_factor=[1.0 + 0.05 * i for i in range(8)], long_factor=[1.5 + 0.5 * i for i in range(8)],
            original_max_position_embeddings=32, rope_theta=10000.0)
NEMOTRON = dict(mamba_num_heads=4, mamba_head_dim=32, ssm_state_size=16, n_groups=2, conv_kernel=4, head_dim=32, num_hidden_layers=None)
ROUTED = dict(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, moe_shared_expert_intermediate_size=96,
              routed_scaling_factor=2.5, layers_block_type=["linear_attention", "moe", "full_attention", "linear_attention", "moe"])
MAMBA = dict(mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16, mamba_d_conv=4)
GRANITE4 = dict(num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], embedding_multiplier=3.0,
                attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=2.0, shared_intermediate_size=96, mamba_n_groups=1,
                tie_word_embeddings=True, **MAMBA)
FALCON_H1 = dict(head_dim=32, mamba_d_ssm=128, embedding_multiplier=2.0, lm_head_multiplier=0.5, mlp_multipliers=[0.8, 1.25],
                 ssm_multipliers=[0.9, 1.1, 1.2, 0.7, 1.3], ssm_in_multiplier=0.75, ssm_out_multiplier=1.5, key_multiplier=0.6,
                 attention_in_multiplier=1.1, attention_out_multiplier=0.9, **MAMBA)
MODELS = {
    "llama": ("llama", usual()),
    "llama-yarn": ("llama", usual(rope_parameters=YARN)),
    "llama-yarn-grown": ("llama", usual(rope_parameters={**YARN, "attention_factor": 1.3})),
    "llama-linear": ("llama", usual(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0))),
    "mistral": ("mistral", usual(head_dim=32, sliding_window=None)),
    "mixtral": ("mixtral", usual(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    "qwen2": ("qwen2", usual(tie_word_embeddings=True)),
    "qwen3": ("qwen3", usual(head_dim=32)),
    "qwen2_moe": ("qwen2_moe", usual(shared_expert_intermediate_size=96, **MOE)),
    "qwen3_moe": ("qwen3_moe", usual(head_dim=32, norm_topk_prob=True, **MOE)),
    "gemma": ("gemma", usual(head_dim=32, num_key_value_heads=1)),
    "gemma2": ("gemma2", usual(head_dim=32, sliding_window=16, query_pre_attn_scalar=32, num_hidden_layers=3)),
    "gemma3": ("gemma3_text", usual(head_dim=32, sliding_window=16, query_pre_attn_scalar=32, num_hidden_layers=7)),
    "phi3": ("phi3", usual(sliding_window=None)),
    "phi3-long": ("phi3", usual(sliding_window=None, rope_parameters=LONG, original_max_position_embeddings=32)),
    "phi4": ("phi3", usual(sliding_window=None, rope_parameters=dict(rope_type="default", rope_theta=250000.0,
                                                                     partial_rotary_factor=0.75))),
    "smollm3": ("smollm3", usual(num_hidden_layers=4)),
    "granite": ("granite", usual(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=2.0)),
    "olmo2": ("olmo2", usual()),
    "glm4": ("glm4", usual(head_dim=16, partial_rotary_factor=0.5, attention_bias=True)),
    "stablelm": ("stablelm", usual(use_qkv_bias=True, partial_rotary_factor=0.25, head_dim=None, hidden_size=128)),
    "stablelm-12b": ("stablelm", usual(use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.25, head_dim=None,
                                       hidden_size=128)),
    "starcoder2": ("starcoder2", usual(sliding_window=None)),
    "gpt_oss": ("gpt_oss", usual(head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
                                 rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "gpt_oss-yarn": ("gpt_oss", usual(head_dim=64, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
                                      rope_parameters={**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True})),
    "deepseek_v2": ("deepseek_v2", usual(**MLA, q_lora_rank=48, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=2,
                                         topk_method="greedy", norm_topk_prob=False, num_hidden_layers=3)),
    "deepseek_v2-lite": ("deepseek_v2", usual(**MLA, q_lora_rank=None, n_routed_experts=2, num_experts_per_tok=1,
                                              n_shared_experts=1, topk_method="greedy", num_hidden_layers=26)),
    "deepseek_v3": ("deepseek_v3", usual(**MLA, q_lora_rank=48, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1,
                                         n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
                                         num_hidden_layers=3, rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0})),
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, n_embd=64, n_head=4, n_layer=2, n_positions=512, bos_token_id=2046,
                          eos_token_id=2047)),
    "gpt_neox": ("gpt_neox", usual(rotary_pct=0.25, rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                                        partial_rotary_factor=0.25), intermediate_size=256)),
    "gpt_neox-serial": ("gpt_neox", usual(use_parallel_residual=False)),
    "nemotron_h": ("nemotron_h", usual(**NEMOTRON, **ROUTED)),
    "nemotron_h-latent": ("nemotron_h", usual(**NEMOTRON, **{**ROUTED, "routed_scaling_factor": 1.0}, moe_latent_size=32, n_group=2,
                                              topk_group=1, norm_topk_prob=False)),
    "nemotron_h-dense": ("nemotron_h", usual(**NEMOTRON, layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"])),
    "granitemoehybrid": ("granitemoehybrid", usual(**GRANITE4, num_local_experts=4, num_experts_per_tok=2, intermediate_size=64)),
    "granitemoehybrid-dense": ("granitemoehybrid", usual(**GRANITE4, num_local_experts=0, position_embedding_type="rope")),
    "falcon_h1": ("falcon_h1", usual(**FALCON_H1, mamba_n_groups=1)),
    "falcon_h1-normed": ("falcon_h1", usual(**FALCON_H1, mamba_n_groups=2, mamba_rms_norm=True, mamba_norm_before_gate=False,
                                            tie_word_embeddings=True)),
    "mamba2": ("mamba2", dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_heads=4, head_dim=32, state_size=16, n_groups=2,
                              conv_kernel=4, expand=2, bos_token_id=2046, eos_token_id=2047, pad_token_id=None)),
    "jamba": ("jamba", usual(num_hidden_layers=4, attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, expert_layer_offset=1,
                             num_experts=4, num_experts_per_tok=2, mamba_dt_rank=32, mamba_d_state=16)),
}


def numbers(name, shape, middle, around):
    """`middle + around·(2u − 1)` in float32, u being the upper 24 bits of splitmix64 of FNV-1a of the name plus the place."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % (1 << 64)
    z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed)
    z = (z + np.uint64(0x9E3779B97F4A7C15))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return (np.float32(middle) + np.float32(around) * (np.float32(2.0) * u - np.float32(1.0))).reshape(shape)


def spread(kind, name, shape):
    """The middle and the width of a tensor's numbers: activations of about one, and attention that looks at something."""
    last = name.split(".")[-1]
    if last == "bias":
        return 0.0, 0.3
    if last == "sinks":
        return 0.0, 1.0
    if last in ("A_log", "dt_bias"):
        # States that keep something of the last dozen positions.
        return (0.0 if last == "A_log" else -1.5), 0.5
    if len(shape) == 1:
        return (0.0 if kind.startswith("gemma") else 1.0), 0.2
    if VOCAB in shape or "wpe" in name:
        return 0.0, 0.3
    columns = shape[0] if kind == "gpt2" else shape[-1]
    sharp = any(part in name for part in ["q_proj", "k_proj", "qkv", "c_attn", "query_key_value"])
    return 0.0, float(np.float32((2.5 if sharp else 1.0) * np.sqrt(3.0 / columns)))


# What llama.cpp calls each type of model, where it is another name.
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3",
                 "gpt_oss": "gpt-oss", "gpt_neox": "gptneox", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2"}
LAYER_NORM = ("stablelm", "starcoder2", "gpt2", "gpt_neox")


def keys(kind, config):
    """Every key of the model itself in GGUF. A whole number stands for a u32, one with a point for an f32."""
    own = config.to_dict()

    def get(*names):
        return next((own[name] for name in names if own.get(name) is not None), None)

    if kind in ("nemotron_h", "granitemoehybrid", "falcon_h1", "mamba2", "jamba"):
        return recurrent_keys(kind, get)
    hidden, heads, blocks = get("hidden_size", "n_embd"), get("num_attention_heads", "n_head"), get("num_hidden_layers", "n_layer")
    context = get("max_position_embeddings", "n_positions")
    mla, rope = "kv_lora_rank" in own, get("rope_parameters") or {}
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    found = {
        "block_count": blocks,
        "context_length": context,
        "embedding_length": hidden,
        "feed_forward_length": get("intermediate_size", "n_inner") or 4 * hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": 1 if mla else heads if kind == "gpt_neox" else get("num_key_value_heads") or heads,
        "vocab_size": get("vocab_size"),
    }
    if kind in LAYER_NORM:
        found["attention.layer_norm_epsilon"] = float(get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"))
    else:
        found["attention.layer_norm_rms_epsilon"] = float(get("rms_norm_eps"))
    head = get("head_dim")
    if mla:
        found |= {"attention.kv_lora_rank": get("kv_lora_rank"),
                  "attention.key_length": get("kv_lora_rank") + get("qk_rope_head_dim"),
                  "attention.value_length": get("kv_lora_rank"),
                  "attention.key_length_mla": get("qk_nope_head_dim") + get("qk_rope_head_dim"),
                  "attention.value_length_mla": get("v_head_dim")}
        if get("q_lora_rank"):
            found["attention.q_lora_rank"] = get("q_lora_rank")
    elif head and kind != "granite":
        found |= {"attention.key_length": head, "attention.value_length": head}
    if kind != "gpt2":
        part = 1.0 if mla else rope.get("partial_rotary_factor", 1.0)
        found["rope.dimension_count"] = int(part * (get("qk_rope_head_dim") if mla else head or hidden // heads))
        if kind not in ("gemma", "gemma2"):
            found["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        found |= {"rope.scaling.original_context_length": rope["original_max_position_embeddings"],
                  "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32),
                  "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1)}
        if rope.get("mscale_all_dim"):
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
        if rope.get("attention_factor"):
            # llama.cpp multiplies what the paper says by it.
            found["rope.scaling.attn_factor"] = rope["attention_factor"] / (1 + 0.1 * math.log(rope["factor"]))
    if local:
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    if kind in ("gemma2", "gemma3_text", "gpt_oss", "phi3"):
        found["attention.sliding_window"] = get("sliding_window") or 0
    for key, name in [("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping", "final_logit_softcapping"),
                      ("attention.scale", "attention_multiplier"), ("embedding_scale", "embedding_multiplier"),
                      ("residual_scale", "residual_multiplier"), ("logit_scale", "logits_scaling")]:
        if get(name):
            found[key] = float(get(name))
    if kind in ("stablelm", "gpt_neox"):
        found["use_parallel_residual"] = get("use_parallel_residual")
    if kind == "phi3":
        long = rope.get("rope_type") == "longrope"
        original = rope["original_max_position_embeddings"] if long else context
        found["rope.scaling.original_context_length"] = original
        if long:
            factor = context / original
            found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(factor) / math.log(original))
    experts = get("num_local_experts", "num_experts", "n_routed_experts")
    if experts:
        found |= {"expert_count": experts, "expert_used_count": get("num_experts_per_tok")}
        if kind != "mixtral":
            found["expert_feed_forward_length"] = get("moe_intermediate_size", "intermediate_size")
        if get("shared_expert_intermediate_size"):
            found["expert_shared_feed_forward_length"] = get("shared_expert_intermediate_size")
    if mla:
        v3 = kind == "deepseek_v3"
        found |= {"leading_dense_block_count": get("first_k_dense_replace"), "expert_shared_count": get("n_shared_experts"),
                  "expert_weights_scale": float(get("routed_scaling_factor")),
                  "expert_weights_norm": v3 and get("norm_topk_prob"), "expert_gating_func": 2 if v3 else 1}
        if v3:
            found |= {"expert_group_count": get("n_group"), "expert_group_used_count": get("topk_group")}
    name = ARCHITECTURES.get(kind, kind)
    return {f"{name}.{key}": value for key, value in sorted(found.items())}


def recurrent_keys(kind, get):
    """The same for models with Mamba blocks. A list has a number for each block."""
    hidden, heads, mamba2 = get("hidden_size"), get("num_attention_heads") or 0, kind != "jamba"
    kinds = get("layers_block_type", "layer_types") or ["linear_attention"] * get("num_hidden_layers")
    if kind == "jamba":
        kinds = ["full_attention" if i % get("attn_layer_period") == get("attn_layer_offset") else "" for i in range(len(kinds))]
    endless = kind in ("nemotron_h", "granitemoehybrid", "mamba2") and get("position_embedding_type") != "rope"

    def each(n, *which):
        return [n if kind in which else 0 for kind in kinds]

    routed = "moe" in kinds or kind in ("granitemoehybrid", "jamba") and get("num_local_experts", "num_experts")
    expand = get("mamba_expand", "expand") or 2
    inner = get("mamba_num_heads") * get("mamba_head_dim") if kind == "nemotron_h" else get("mamba_d_ssm") or expand * hidden
    found = {
        "block_count": len(kinds),
        "context_length": 2**20 if endless else get("max_position_embeddings"),
        "embedding_length": hidden,
        "feed_forward_length": get("intermediate_size") or 0,
        "attention.head_count": heads,
        "attention.head_count_kv": get("num_key_value_heads") or 0,
        "vocab_size": get("vocab_size"),
        "ssm.conv_kernel": get("conv_kernel", "mamba_d_conv"),
        "ssm.state_size": get("ssm_state_size", "state_size", "mamba_d_state"),
        "ssm.inner_size": inner,
        "ssm.time_step_rank": get("mamba_num_heads", "mamba_n_heads", "num_heads") if mamba2 else get("mamba_dt_rank"),
    }
    if mamba2:
        found["ssm.group_count"] = get("mamba_n_groups", "n_groups")
    eps = "layer_norm_epsilon" if kind == "nemotron_h" else "layer_norm_rms_epsilon"
    found[f"attention.{eps}"] = float(get("rms_norm_eps", "layer_norm_epsilon"))
    if kind in ("nemotron_h", "granitemoehybrid", "jamba"):
        found["attention.head_count_kv"] = each(get("num_key_value_heads"), "full_attention")
    if kind in ("nemotron_h", "falcon_h1"):
        found |= {"attention.key_length": get("head_dim"), "attention.value_length": get("head_dim")}
    if kind in ("granitemoehybrid", "falcon_h1"):
        found |= {"rope.freq_base": float(get("rope_parameters")["rope_theta"]),
                  "rope.dimension_count": get("head_dim") or hidden // heads}
    if kind in ("nemotron_h", "granitemoehybrid"):
        found["rope.scaling.finetuned"] = not endless
    if kind == "granitemoehybrid":
        found |= {"attention.scale": float(get("attention_multiplier")), "embedding_scale": float(get("embedding_multiplier")),
                  "residual_scale": float(get("residual_multiplier")), "logit_scale": float(get("logits_scaling"))}
        if routed:
            found["expert_shared_feed_forward_length"] = get("shared_intermediate_size")
        else:
            found["feed_forward_length"] = get("shared_intermediate_size")
    if routed:
        found |= {"expert_count": get("num_local_experts", "num_experts", "n_routed_experts"),
                  "expert_used_count": get("num_experts_per_tok")}
    if kind == "nemotron_h":
        found["feed_forward_length"] = each(get("moe_intermediate_size" if routed else "intermediate_size"), "moe", "mlp")
        if routed:
            found |= {"expert_feed_forward_length": get("moe_intermediate_size"), "expert_shared_count": get("n_shared_experts"),
                      "expert_shared_feed_forward_length": get("moe_shared_expert_intermediate_size"),
                      "expert_group_count": get("n_group"), "expert_group_used_count": get("topk_group"),
                      "expert_weights_norm": get("norm_topk_prob"), "expert_weights_scale": float(get("routed_scaling_factor"))}
            if get("moe_latent_size"):
                found["moe_latent_size"] = get("moe_latent_size")
    name = {"granitemoehybrid": "granitehybrid", "falcon_h1": "falcon-h1"}.get(kind, kind)
    if kind == "nemotron_h" and routed:
        name = "nemotron_h_moe"
    return {f"{name}.{key}": value for key, value in sorted(found.items())}


def golden(name):
    import torch
    from safetensors.numpy import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    kind, changes = MODELS[name]
    config = AutoConfig.for_model(kind, **changes)
    folder = tempfile.mkdtemp()
    try:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        path = os.path.join(folder, "model.safetensors")
        shapes = {tensor: list(array.shape) for tensor, array in sorted(load_file(path).items())}
        tensors = {tensor: [shape, *spread(kind, tensor, shape)] for tensor, shape in shapes.items()}
        save_file({tensor: numbers(tensor, *how) for tensor, how in tensors.items()}, path, metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with open(os.path.join(folder, "config.json"), encoding="utf8") as file:
            saved = json.load(file)
    finally:
        shutil.rmtree(folder)
    places = numbers("tokens", [WINDOWS, LENGTH], 0.5, 0.5)
    windows = np.minimum((places * 2000).astype(np.int64), 1999)
    windows[:, 0] = 2046
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor(windows)).logits.double(), -1)
    scored = logs[:, :-1].gather(2, torch.tensor(windows)[:, 1:, None])[:, :, 0]
    saved = {key: value for key, value in saved.items() if key not in ("transformers_version", "dtype")}
    rows = ",\n".join(f"  {json.dumps(tensor)}: {json.dumps(how)}" for tensor, how in tensors.items())
    with open(os.path.join(ROOT, "tests", "architectures", f"{name}.json"), "w", encoding="utf8") as file:
        file.write('{"config": %s,\n"keys": %s,\n"tensors": {\n%s\n},\n"windows": %s,\n"logprobs": %s}\n' % (
            json.dumps(saved, indent=1), json.dumps(keys(kind, model.config), indent=1), rows, json.dumps(windows.tolist()),
            json.dumps([[round(x, 6) for x in row] for row in scored.tolist()])))
    print(name, float(scored.mean()))


for name in sys.argv[1:] or MODELS:
    golden(name)
