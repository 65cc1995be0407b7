#!/usr/bin/env python3
"""What transformers reads in config.json: src/model/config_keys.json.

  scripts/config_keys.py [FOLDER...]

For each model type that is named in the Rust files of src/model/family (and of further folders): the keys that its class of transformers
reads, with what it takes where the file does not say (`keys`), other names that it takes for them (`other_names`), and for models
that also see or hear, the type of the text inside where the file does not say that (`text`). Keys that never change a logit are
left out (HARMLESS). Needs a python with transformers (5 or newer); the table is committed, so that nothing else does.
"""
import dataclasses, inspect, json, math, os, re, sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src/model/config_keys.json"

# Regular expressions, and why what they name changes no logit.
HARMLESS = {
    "training": "initializer_range|.*dropout|(embd|resid|attn)_pdrop|output_router_logits|router_aux_loss_coef|router_jitter_noise"
                "|rescale_prenorm_residual|pretraining_tp|time_step_(max|floor)",
    "special tokens": ".*_token_id|.*_token_index",
    "how it runs": "use_cache|num_logits_to_keep|use_mamba_kernels|use_mambapy|use_associative_scan|(mamba_)?chunk_size|residual_in_fp32"
                   "|reorder_and_upcast_attn|enable_moe_fp32_combine|mamba_ssm_cache_dtype|moe_shared_expert_overlap|torch_dtype|dtype",
    "other heads": "summary_.*|problem_type|is_decoder|num_mtp_layers|num_nextn_predict_layers|mtp_.*",
    "images and sounds": "vision_config|audio_config|text_config",
}
# What code that all models share reads, and no class declares.
SHARED = {"is_causal": True, "per_layer_config": None, "attention_chunk_size": None}
# Classes that come with checkpoints, and not with transformers.
BAILING_MOE_V2 = dict(
    first_k_dense_replace=1, head_dim=128, hidden_act="silu", hidden_size=2048, intermediate_size=5120, max_position_embeddings=32768,
    moe_intermediate_size=512, moe_router_enable_expert_bias=True, moe_shared_expert_intermediate_size=None, n_group=8, norm_head=False,
    norm_topk_prob=True, num_attention_heads=16, num_experts=256, num_experts_per_tok=8, num_hidden_layers=20, num_key_value_heads=4,
    num_shared_experts=1, partial_rotary_factor=None, rms_norm_eps=1e-6, rope_parameters=None, rope_scaling=None, rope_theta=600000.0,
    rotary_dim=None, routed_scaling_factor=1.0, score_function="sigmoid", tie_word_embeddings=False, topk_group=4, use_bias=False,
    use_qk_norm=True, use_qkv_bias=False, vocab_size=157184)
OWN = {"bailing_moe": BAILING_MOE_V2, "bailing_moe_v2": BAILING_MOE_V2}


def model_types(folders):
    texts = (path.read_text() for folder in folders for path in Path(folder).glob("*.rs"))
    named = (re.findall(r'"(\w+)"', text) for text in texts if "fn model_types" in text)
    return sorted(set().union(*named) & {*transformers.CONFIG_MAPPING.keys(), *OWN})


def harmless(key):
    return any(re.fullmatch(pattern, key) for pattern in HARMLESS.values())


def finite(value):
    """A value as JSON has it: infinity is no limit."""
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_type(config):
    """The type of the text inside, if there is one."""
    return config().text_config.model_type if "text_config" in config.__dataclass_fields__ else None


def described(config):
    inside = text_type(config)
    if inside:
        return {"text": inside, "keys": {"tie_word_embeddings": config.__dataclass_fields__["tie_word_embeddings"].default}
                if "tie_word_embeddings" in config.__dataclass_fields__ else {}}
    usual = set(transformers.PreTrainedConfig.__dataclass_fields__)
    keys = {}
    for name, field in config.__dataclass_fields__.items():
        if name not in usual:
            own = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            keys[config.attribute_map.get(name, name)] = own
    # Keys that are no fields: taken out of what is left over, with what is taken for them; and those of the modeling code.
    source = inspect.getsource(config)
    for name, value in re.findall(r'kwargs\.setdefault\("(\w+)", ([\d.]+)\)', source):
        keys.setdefault(name, float(value))
    for name in re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', source):
        keys.setdefault(name, None)
    modeling = "".join(path.read_text() for path in Path(inspect.getfile(config)).parent.glob("modeling_*.py"))
    for name in re.findall(r'getattr\((?:self\.)?config, "([a-z]\w+)"', modeling):
        keys.setdefault(name, None)
    if "rope_parameters" in keys:
        keys.setdefault("rope_scaling", None)
        keys.setdefault("partial_rotary_factor", None)
        theta = getattr(config, "default_theta", None)
        if isinstance(theta, (int, float)):
            keys["rope_theta"] = float(theta)
    for name, value in SHARED.items():
        keys.setdefault(name, value)
    found = {"keys": {name: finite(value) for name, value in sorted(keys.items()) if not harmless(name)}}
    if config.attribute_map:
        found["other_names"] = {new: old for new, old in sorted(config.attribute_map.items()) if not harmless(old)}
    return found


def main():
    lines = []
    for kind in model_types([ROOT / "src/model/family", *sys.argv[1:]]):
        found = {"keys": OWN[kind]} if kind in OWN else described(transformers.CONFIG_MAPPING[kind])
        lines.append(f"{json.dumps(kind)}: {json.dumps(found)}")
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{OUT}: {len(lines)} types of models, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
