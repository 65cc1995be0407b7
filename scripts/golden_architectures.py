#!/usr/bin/env python3
"""What transformers makes of a small model of each architecture: the golden files of tests/architectures.

  scripts/golden_architectures.py [NAME...]

Needs a python with torch and transformers (5 or newer); the tests that read the files need neither. A file holds the
configuration, the keys that llama.cpp's converter and loader have for it (`keys` below), the names and shapes of the tensors as
transformers saves them, without those of images, from which formula their numbers come, some windows of tokens, and for each token
but the first of a window its log-probability in float32. The numbers are a hash of a tensor's name and of an element's place (`numbers`
below), so that the test makes the same checkpoint without any file.
"""
import json, math, os, re, shutil, sys, tempfile
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
ROUTED8 = dict(num_experts=8, num_experts_per_tok=2)
GROWN = dict(llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0, **{**YARN, "original_max_position_embeddings": 16})
# Six heads of values on two of keys: turning them over twice is not the same as not at all.
NET = dict(linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16, linear_conv_kernel_dim=4,
           head_dim=32, num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"])
QUARTER = dict(rope_type="default", rope_theta=1e6, partial_rotary_factor=0.25)
SECTIONS = dict(**QUARTER, mrope_section=[2, 1, 1], mrope_interleaved=True)
NET_MOE = dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, shared_expert_intermediate_size=64)
# Wide, because llama.cpp divides by one less than the numbers of a gate.
GEMMA3N = usual(head_dim=32, sliding_window=8, laurel_rank=64, hidden_size_per_layer_input=256, intermediate_size=1024)
GEMMA4 = usual(head_dim=32, global_head_dim=64, sliding_window=8, final_logit_softcapping=30.0, hidden_size_per_layer_input=0,
               rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                                    full_attention=dict(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25)))
SHARED_KEYS = dict(attention_k_eq_v=True, num_global_key_value_heads=1)


def kinds(letters):
    return ["full_attention" if letter == "f" else "sliding_attention" for letter in letters]


CONV = dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], conv_L_cache=3)
GRANITE = dict(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=2.0, tie_word_embeddings=True)
SIGMOIDS = dict(n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=64, n_group=1, topk_group=1,
                first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=1.5)

# What sees has a model of text inside. Its own sizes matter to nobody here.
IMAGES = dict(image_token_id=2040, video_token_id=2041, vision_start_token_id=2042, vision_end_token_id=2043)
VISION = dict(hidden_size=32, depth=2, num_heads=2, intermediate_size=48, out_hidden_size=64, patch_size=4, spatial_merge_size=2,
              temporal_patch_size=2, in_channels=3)
VISION3 = dict(**VISION, num_position_embeddings=16)
PIXTRAL = dict(model_type="pixtral", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16,
               patch_size=4, head_dim=16)


def seeing(vision, text, **more):
    return dict(text_config=text, vision_config=vision, **more)


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
    "gemma3-embedding": ("gemma3_text", usual(head_dim=32, sliding_window=16, query_pre_attn_scalar=32, num_hidden_layers=7,
                                              use_bidirectional_attention=True)),
    "phi3": ("phi3", usual(sliding_window=None)),
    "phi3-long": ("phi3", usual(sliding_window=None, rope_parameters=LONG, original_max_position_embeddings=32)),
    "phi4": ("phi3", usual(sliding_window=None, rope_parameters=dict(rope_type="default", rope_theta=250000.0,
                                                                     partial_rotary_factor=0.75))),
    "phi": ("phi", usual(num_key_value_heads=4, intermediate_size=256,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "mimo_v2_flash": ("mimo_v2_flash", usual(head_dim=32, v_head_dim=16, num_hidden_layers=3, num_key_value_heads=1, n_routed_experts=8,
                                             num_experts_per_tok=2, moe_intermediate_size=64, sliding_window=16, layer_types=kinds("fsf"))),
    "bailing_hybrid": ("bailing_hybrid", usual(head_dim=32, num_hidden_layers=3, layer_group_size=3, num_local_experts=4, num_mtp_layers=0,
                                               num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=64,
                                               first_k_dense_replace=1, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=None,
                                               qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32)),
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
    # Sparse from the thirty-third position on, with no choice so close that half precision changes it.
    "deepseek_v32": ("deepseek_v32", usual(**MLA, q_lora_rank=48, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1,
                                           n_group=4, topk_group=2, num_hidden_layers=3, index_n_heads=8, index_head_dim=64, index_topk=32,
                                           rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0})),
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, n_embd=64, n_head=4, n_layer=2, n_positions=512, bos_token_id=2046,
                          eos_token_id=2047)),
    "gpt_neox": ("gpt_neox", usual(rotary_pct=0.25, rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                                        partial_rotary_factor=0.25), intermediate_size=256)),
    "gpt_neox-serial": ("gpt_neox", usual(use_parallel_residual=False)),
    "internlm3": ("internlm3", usual(head_dim=32, qkv_bias=True, bias=True)),
    "mistral3": ("mistral3", seeing(PIXTRAL, usual(model_type="mistral", head_dim=32, sliding_window=None),
                                    tie_word_embeddings=False, spatial_merge_size=2, image_token_index=2040)),
    "ministral3": ("ministral3", usual(head_dim=32, sliding_window=None, tie_word_embeddings=True, rope_parameters={
        **YARN, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1})),
    "qwen2_vl": ("qwen2_vl", seeing(dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, patch_size=4, spatial_merge_size=2,
                                         temporal_patch_size=2, in_channels=3),
                                    usual(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[4, 2, 2])), **IMAGES)),
    "qwen2_5_vl": ("qwen2_5_vl", seeing(dict(window_size=16, fullatt_block_indexes=[1], **VISION),
                                        usual(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[4, 2, 2])),
                                        tie_word_embeddings=True, **IMAGES)),
    "qwen3_vl": ("qwen3_vl", seeing(dict(deepstack_visual_indexes=[0], **VISION3),
                                    usual(head_dim=32, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 4, 4],
                                                                            mrope_interleaved=True)), **IMAGES)),
    "qwen3_5": ("qwen3_5_text", usual(**NET, rope_parameters=SECTIONS)),
    "qwen3_5-seeing": ("qwen3_5", seeing(VISION3, usual(**NET, rope_parameters=SECTIONS), tie_word_embeddings=True, **IMAGES)),
    "qwen3_5_moe": ("qwen3_5_moe_text", usual(**NET, **NET_MOE, rope_parameters=SECTIONS)),
    "qwen3_5_moe-seeing": ("qwen3_5_moe", seeing(VISION3, usual(**NET, **NET_MOE, rope_parameters=SECTIONS), **IMAGES)),
    "qwen3_next": ("qwen3_next", usual(**NET, **NET_MOE, rope_parameters=QUARTER)),
    "gemma4": ("gemma4_text", {**GEMMA4, **SHARED_KEYS, "num_hidden_layers": 4, "layer_types": kinds("sfsf")}),
    "gemma4_e2b": ("gemma4_text", {**GEMMA4, "num_hidden_layers": 5, "layer_types": kinds("ssfsf"), "num_key_value_heads": 1,
                                   "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2,
                                   "use_double_wide_mlp": True}),
    "gemma4_moe": ("gemma4_text", {**GEMMA4, **SHARED_KEYS, "num_hidden_layers": 2, "layer_types": kinds("sf"), "enable_moe_block": True,
                                   "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}),
    "gemma3n": ("gemma3n_text", {**GEMMA3N, "num_hidden_layers": 4, "layer_types": kinds("ssfs"), "num_kv_shared_layers": 0,
                                 "activation_sparsity_pattern": [0.95] * 4, "vocab_size_per_layer_input": VOCAB}),
    "gemma3n-shared": ("gemma3n_text", {**GEMMA3N, "num_hidden_layers": 22, "layer_types": kinds("ssssf" * 4 + "sf"),
                                        "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB - 48}),
    "hrm_text": ("hrm_text", usual(head_dim=32, H_cycles=2, L_cycles=2, embedding_scale=3.0)),
    "cohere": ("cohere", usual(logit_scale=0.5)),
    "cohere2": ("cohere2", usual(logit_scale=0.5, sliding_window=16, num_hidden_layers=4)),
    "cohere2_moe": ("cohere2_moe", usual(head_dim=32, logit_scale=0.5, sliding_window=16, num_hidden_layers=5, first_k_dense_replace=1,
                                         prefix_dense_intermediate_size=128, num_shared_experts=2, expert_selection_fn="sigmoid",
                                         norm_topk_prob=False, **ROUTED8)),
    "cohere2_moe-softmax": ("cohere2_moe", usual(head_dim=32, logit_scale=0.5, sliding_window=16, rms_norm_eps=1e-5, **ROUTED8)),
    "mistral4": ("mistral4", usual(**MLA, q_lora_rank=48, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
                                   rope_parameters=GROWN, routed_scaling_factor=1.5, num_hidden_layers=3)),
    "llama4": ("llama4_text", usual(head_dim=32, num_local_experts=4, num_experts_per_tok=2, intermediate_size_mlp=128,
                                    interleave_moe_layer_step=2, num_hidden_layers=4)),
    "apertus": ("apertus", usual()),
    "minimax_m2": ("minimax_m2", usual(head_dim=32, num_local_experts=8, num_experts_per_tok=2, rope_parameters=dict(
        rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "hy_v3": ("hy_v3", usual(head_dim=32, num_shared_experts=1, num_hidden_layers=3, num_experts=4, num_experts_per_tok=2,
                             moe_intermediate_size=64, router_scaling_factor=1.5)),
    "granite_swa": ("granite_swa", usual(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=2.0,
                                         sliding_window=16, num_hidden_layers=4, layer_rope_theta=[10000.0, 10000.0, 0.0, 10000.0])),
    "nemotron": ("nemotron", usual(head_dim=16)),
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
    "mellum": ("mellum", usual(head_dim=32, num_hidden_layers=4, sliding_window=16, layer_types=3 * ["sliding_attention"] + ["full_attention"],
                               rope_parameters=dict(full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=10000.0)),
                               **MOE)),
    "dots1": ("dots1", usual(num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=2, moe_intermediate_size=32,
                             first_k_dense_replace=1, n_group=4, topk_group=2, norm_topk_prob=True, sliding_window=None,
                             num_hidden_layers=3)),
    "exaone_moe": ("exaone_moe", usual(head_dim=32, num_shared_experts=1, sliding_window=16, num_hidden_layers=4, num_experts=4,
                                       num_experts_per_tok=2, moe_intermediate_size=64, routed_scaling_factor=1.5)),
    "jais2": ("jais2", usual(head_dim=16)),
    "minicpm3": ("minicpm3", usual(num_key_value_heads=4, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32,
                                   q_lora_rank=48)),
    "falcon": ("falcon", usual(new_decoder_architecture=False, multi_query=True, alibi=False, bias=False, parallel_attn=True)),
    "solar_open": ("solar_open", usual(head_dim=32, n_routed_experts=4, routed_scaling_factor=0.5, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1)),
    "sarvam_moe": ("sarvam_moe", usual(head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, num_hidden_layers=3,
                                       routed_scaling_factor=1.5)),
    "falcon-40b": ("falcon", usual(new_decoder_architecture=True, num_kv_heads=2, alibi=False, bias=False)),
    "gpt_bigcode": ("gpt_bigcode", dict(vocab_size=VOCAB, n_embd=64, n_head=4, n_layer=2, n_positions=512, multi_query=True,
                                        bos_token_id=2046, eos_token_id=2047)),
    "lfm2": ("lfm2", usual(**CONV, block_auto_adjust_ff_dim=False)),
    "lfm2_moe": ("lfm2_moe", usual(**CONV, **MOE, num_dense_layers=1, use_expert_bias=True, norm_topk_prob=True, routed_scaling_factor=1.0)),
    "granitemoe": ("granitemoe", usual(num_local_experts=4, num_experts_per_tok=2, **GRANITE)),
    "granitemoeshared": ("granitemoeshared", usual(num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=96, **GRANITE)),
    "glm4_moe": ("glm4_moe", usual(head_dim=32, use_qk_norm=True, attention_bias=True, **SIGMOIDS,
                                   rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "glm4_moe_lite": ("glm4_moe_lite", usual(q_lora_rank=48, mlp_layer_types=["dense", "sparse"], **{**MLA, **SIGMOIDS})),
    "laguna": ("laguna", usual(head_dim=32, num_hidden_layers=4, shared_expert_intermediate_size=96, layer_types=kinds("fsss"),
                               sliding_window=16, moe_routed_scaling_factor=2.5, num_attention_heads_per_layer=[4, 6, 6, 6], **{**MOE, "num_experts": 4})),
    "ernie4_5": ("ernie4_5", usual(head_dim=32)),
    "ernie4_5_moe": ("ernie4_5_moe", usual(num_hidden_layers=3, moe_num_experts=8, moe_k=2, moe_intermediate_size=64,
                                           moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=2, moe_layer_interval=1)),
    "seed_oss": ("seed_oss", usual(head_dim=32, attention_bias=True, attention_out_bias=False)),
    "olmo3": ("olmo3", usual(num_hidden_layers=4, sliding_window=16, layer_types=kinds("sssf"))),
    "olmoe": ("olmoe", usual(num_key_value_heads=4, **ROUTED8)),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", usual(head_dim=32)),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", usual(head_dim=32, num_experts=8, moe_topk=2, moe_intermediate_size=64, num_shared_expert=1)),
    "exaone4": ("exaone4", usual(sliding_window=None, sliding_window_pattern=None, layer_types=kinds("ff"))),
    "afmoe": ("afmoe", usual(head_dim=32, num_hidden_layers=4, num_shared_experts=1, num_dense_layers=1, sliding_window=16,
                             layer_types=kinds("sssf"), n_group=1, topk_group=1, route_scale=2.0, mup_enabled=True, **MOE)),
    "arcee": ("arcee", usual()),
    "qwen3_vl_moe": ("qwen3_vl_moe", seeing(dict(deepstack_visual_indexes=[0], **VISION3), tie_word_embeddings=False, **IMAGES, text=usual(
        head_dim=32, norm_topk_prob=True, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 4, 4],
                                                               mrope_interleaved=True), **{**MOE, "num_experts": 4}))),
    "muse_glimmer": ("muse_glimmer", seeing(dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, patch_size=4,
                                                 pos_emb_height=4, pos_emb_width=4), text=usual(
        head_dim=32, num_hidden_layers=4, sliding_window=16, layer_types=kinds("sssf")))),
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
    if last in ("A_log", "dt_bias") and kind in ("nemotron_h", "granitemoehybrid", "falcon_h1", "mamba2", "jamba"):
        # States that keep something of the last dozen positions.
        return (0.0 if last == "A_log" else -1.5), 0.5
    if last in ("A_log", "dt_bias", "layer_scalar"):
        return {"A_log": (0.7, 0.7), "dt_bias": (0.0, 0.5), "layer_scalar": (0.8, 0.1)}[last]
    if not shape:
        return {"beta": (0.5, 0.1), "eps": (-1e-6, 0.0)}[last]
    if kind == "gemma3n_text" and "post_" in name:
        # Of many blocks each adds a little, so that rounding does not grow from block to block.
        return 0.25, 0.05
    if len(shape) == 1:
        above_one = kind in ("gemma", "gemma2", "gemma3_text") or kind.startswith(("qwen3_5", "qwen3_next", "nemotron"))
        return (0.0 if above_one and "linear_attn" not in name else 1.0), 0.2
    if VOCAB in shape or "wpe" in name:
        return 0.0, 0.3
    columns = shape[0] if kind == "gpt2" else shape[-1]
    if name.endswith("_coefs.weight"):
        return 0.0, 0.1
    if "modality_router" in name:
        # It reads numbers that are divided by so many.
        return 0.0, float(np.float32(np.sqrt(3.0 * columns)))
    sharp = any(part in name for part in ["q_proj", "k_proj", "qkv", "c_attn", "query_key_value"])
    return 0.0, float(np.float32((2.5 if sharp else 1.0) * np.sqrt(3.0 / columns)))


# What llama.cpp calls each type of model, where it is another name.
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3",
                 "gpt_oss": "gpt-oss", "gpt_neox": "gptneox", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "deepseek_v32": "deepseek32",
                 "internlm3": "llama", "ministral3": "mistral3", "qwen2_vl": "qwen2vl", "qwen2_5_vl": "qwen2vl", "qwen3_vl": "qwen3vl",
                 "qwen3_5": "qwen35", "qwen3_5_text": "qwen35", "qwen3_5_moe": "qwen35moe", "qwen3_5_moe_text": "qwen35moe",
                 "qwen3_next": "qwen3next", "exaone_moe": "exaone-moe", "sarvam_moe": "bailingmoe2", "solar_open": "glm4moe", "phi": "phi2", "mimo_v2_flash": "mimo2", "bailing_hybrid": "bailingmoe3", "gpt_bigcode": "starcoder", "gemma4_text": "gemma4", "gemma3n_text": "gemma3n",
                 "cohere": "command-r", "cohere2_moe": "cohere2moe", "llama4_text": "llama4", "minimax_m2": "minimax-m2"}
LAYER_NORM = ("stablelm", "starcoder2", "gpt2", "gpt_neox", "cohere", "cohere2", "cohere2_moe", "nemotron", "jais2", "falcon",
              "gpt_bigcode", "phi")


def keys(kind, config):
    """Every key of the model itself in GGUF. A whole number stands for a u32, one with a point for an f32."""
    own = config.get_text_config().to_dict()

    def get(*names):
        return next((own[name] for name in names if own.get(name) is not None), None)

    if kind in ("nemotron_h", "granitemoehybrid", "falcon_h1", "mamba2", "jamba"):
        return recurrent_keys(kind, get)
    hidden, heads, blocks = get("hidden_size", "n_embd"), get("num_attention_heads", "n_head"), get("num_hidden_layers", "n_layer")
    context = get("max_position_embeddings", "n_positions", "model_max_length")
    mla, rope = "kv_lora_rank" in own and kind != "minicpm3", get("rope_parameters") or {}
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
    if kind in LAYER_NORM and not get("rms_norm_eps"):
        found["attention.layer_norm_epsilon"] = float(get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"))
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
    if kind not in ("gpt2", "gpt_bigcode"):
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
    if local and kind != "mellum":
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
        found |= {"expert_count": experts, "expert_used_count": get("num_experts_per_tok", "num_experts_per_token")}
        if kind != "mixtral":
            found["expert_feed_forward_length"] = get("moe_intermediate_size", "intermediate_size")
        if get("shared_expert_intermediate_size"):
            found["expert_shared_feed_forward_length"] = get("shared_expert_intermediate_size")
    if mla:
        v3, v4 = kind in ("deepseek_v3", "deepseek_v32"), kind == "mistral4"
        found |= {"leading_dense_block_count": get("first_k_dense_replace"), "expert_shared_count": get("n_shared_experts"),
                  "expert_weights_scale": float(get("routed_scaling_factor")),
                  "expert_weights_norm": (v3 or v4) and get("norm_topk_prob"), "expert_gating_func": 2 if v3 else 1}
        if v3:
            found |= {"expert_group_count": get("n_group"), "expert_group_used_count": get("topk_group")}
    if "index_topk" in own:
        found |= {"attention.indexer.head_count": get("index_n_heads"), "attention.indexer.key_length": get("index_head_dim"),
                  "attention.indexer.top_k": get("index_topk")}
    if rope.get("mrope_section"):
        found["rope.dimension_sections"] = (rope["mrope_section"] + [0] * 4)[:4]
    if kind == "qwen3_vl":
        found["n_deepstack_layers"] = len(config.vision_config.deepstack_visual_indexes)
    if kind == "ministral3":
        found |= {"rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"], "attention.temperature_scale": rope["llama_4_scaling_beta"]}
    if "linear_num_key_heads" in own:
        found |= {"ssm.conv_kernel": get("linear_conv_kernel_dim"), "ssm.state_size": get("linear_key_head_dim"),
                  "ssm.group_count": get("linear_num_key_heads"), "ssm.time_step_rank": get("linear_num_value_heads"),
                  "ssm.inner_size": get("linear_num_value_heads") * get("linear_value_head_dim"), "full_attention_interval": 4,
                  "attention.recurrent_layers": [kind == "linear_attention" for kind in get("layer_types")]}
    if kind.startswith("gemma4"):
        found |= gemma4_keys(own)
    if kind in OF_KIND:
        found |= OF_KIND[kind](get)
    name = "gemma-embedding" if get("use_bidirectional_attention") is True else ARCHITECTURES.get(kind, kind)
    return {f"{name}.{key}": value for key, value in sorted(found.items())}


def gemma4_keys(own):
    """Those of Gemma 4: two kinds of blocks. Lists where blocks differ."""
    local, blocks = [kind == "sliding_attention" for kind in own["layer_types"]], own["num_hidden_layers"]
    head, shared = own["head_dim"], own.get("num_kv_shared_layers") or 0
    whole = own["per_layer_config"][str(local.index(False))]
    full = whole["head_dim"]
    found = {"attention.key_length": full, "attention.value_length": full, "attention.key_length_swa": head,
             "attention.value_length_swa": head, "rope.dimension_count": full, "rope.dimension_count_swa": head,
             "attention.sliding_window": own["sliding_window"], "attention.sliding_window_pattern": local,
             "attention.shared_kv_layers": shared,
             "embedding_length_per_layer_input": own.get("hidden_size_per_layer_input") or 0}
    if own.get("attention_k_eq_v"):
        found["attention.head_count_kv"] = [own["num_key_value_heads"] if kind else whole["num_key_value_heads"] for kind in local]
    if own.get("use_double_wide_mlp"):
        found["feed_forward_length"] = [own["intermediate_size"] * (2 if i >= blocks - shared else 1) for i in range(blocks)]
    if own.get("enable_moe_block"):
        found["expert_used_count"] = own["top_k_experts"]
    return found


def windowed(get):
    return {"attention.sliding_window": get("sliding_window"),
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in get("layer_types")]}


def gemma3n(get):
    local, usual = [kind == "sliding_attention" for kind in get("layer_types")], [(i + 1) % 5 != 0 for i in range(get("num_hidden_layers"))]
    return {"feed_forward_length": get("intermediate_size")[0], "altup.active_idx": get("altup_active_idx"),
            "altup.num_inputs": get("altup_num_inputs"), "embedding_length_per_layer_input": get("hidden_size_per_layer_input"),
            "attention.shared_kv_layers": get("num_kv_shared_layers"), "attention.sliding_window": get("sliding_window"),
            **({} if local == usual else {"attention.sliding_window_pattern": local})}


def hrm_text(get):
    return {"attention.head_count_kv": get("num_attention_heads"), "embedding_scale": get("embedding_scale"),
            "hrm.layers_per_stack": get("num_layers_per_stack"), "hrm.h_cycles": get("H_cycles"), "hrm.l_cycles": get("L_cycles"),
            "hrm.prefix_lm": get("prefix_lm")}


def scaled(get):
    return {"logit_scale": float(get("logit_scale")), "rope.scaling.type": "none"}


def cohere2_moe(get):
    dense, width, shared = get("mlp_layer_types").count("dense"), get("intermediate_size"), get("num_shared_experts")
    softmax = get("expert_selection_fn") == "softmax"
    found = {"feed_forward_length": get("prefix_dense_intermediate_size") or width, "leading_dense_block_count": dense,
             "expert_feed_forward_length": width, "expert_weights_norm": softmax or get("norm_topk_prob"),
             "expert_gating_func": 1 if softmax else 2}
    if shared:
        found |= {"expert_shared_count": shared, "expert_shared_feed_forward_length": shared * width}
    return {**windowed(get), **scaled(get), **found}


def mistral4(get):
    rope = get("rope_parameters")
    return {"attention.temperature_scale": rope["llama_4_scaling_beta"],
            "attention.temperature_length": rope["original_max_position_embeddings"]}


def llama4(get):
    return {"feed_forward_length": get("intermediate_size_mlp"), "expert_feed_forward_length": get("intermediate_size"),
            "interleave_moe_layer_step": get("interleave_moe_layer_step")}


def hy_v3(get):
    return {"expert_shared_feed_forward_length": get("num_shared_experts") * get("moe_intermediate_size"), "expert_gating_func": 2,
            "expert_weights_norm": True, "expert_weights_scale": get("router_scaling_factor")}


def grouped(get):
    shared = get("n_shared_experts", "num_shared_experts")
    found = {"leading_dense_block_count": get("first_k_dense_replace") or 0, "expert_shared_count": shared,
             "expert_weights_scale": float(get("routed_scaling_factor")),
             "expert_weights_norm": get("norm_topk_prob", "moe_renormalize"), "expert_gating_func": 2}
    groups = get("n_group", "num_expert_group")
    if groups > 1:
        found |= {"expert_group_count": groups, "expert_group_used_count": get("topk_group")}
    return found


def exaone_moe(get):
    return {**grouped(get), **windowed(get),
            "expert_shared_feed_forward_length": get("num_shared_experts") * get("moe_intermediate_size")}


def sarvam_moe(get):
    return {**grouped(get), "expert_shared_feed_forward_length": get("moe_intermediate_size")}


def mimo2(get):
    local = [kind == "sliding_attention" for kind in get("layer_types")]
    return {**windowed(get), "attention.value_length": get("v_head_dim"), "attention.value_scale": float(get("attention_value_scale")),
            "attention.head_count_kv": [get("num_key_value_heads") * (2 if kind else 1) for kind in local],
            "leading_dense_block_count": get("mlp_layer_types").count("dense"), "expert_shared_count": 0,
            "expert_weights_scale": float(get("routed_scaling_factor")), "expert_weights_norm": get("norm_topk_prob"),
            "expert_gating_func": 2}


def bailing_moe3(get):
    return {**grouped(get), "attention.head_count_kv": [int(kind == "full_attention") for kind in get("layer_types")],
            "expert_shared_feed_forward_length": get("n_shared_experts", "num_shared_experts") * get("moe_intermediate_size"),
            "ssm.conv_kernel": get("short_conv_kernel_size"), "kda.head_dim": get("linear_head_dim"), "kda.safe_gate": True,
            "kda.gate_lower_bound": float(get("kda_lower_bound"))}


def minicpm3(get):
    return {"attention.head_count_kv": get("num_attention_heads"), "attention.key_length": get("qk_nope_head_dim") + get("qk_rope_head_dim"),
            "attention.value_length": get("v_head_dim"), "attention.q_lora_rank": get("q_lora_rank"),
            "attention.kv_lora_rank": get("kv_lora_rank"), "rope.dimension_count": get("qk_rope_head_dim")}


def falcon(get):
    kv_heads = get("num_kv_heads") if get("new_decoder_architecture") else 1
    return {"feed_forward_length": get("ffn_hidden_size"), "attention.head_count_kv": kv_heads, "tensor_data_layout": "jploski"}


def granite_swa(get):
    return {**windowed(get), "attention.rope_pattern": [base > 0 for base in get("layer_rope_theta")]}


# What each of these types has besides.
OF_KIND = {"cohere": scaled, "cohere2": lambda get: {**windowed(get), **scaled(get)}, "cohere2_moe": cohere2_moe, "mistral4": mistral4,
           "llama4_text": llama4, "minimax_m2": lambda get: {"expert_gating_func": 2}, "hy_v3": hy_v3, "granite_swa": granite_swa,
           "nemotron": lambda get: {"rope.scaling.type": "none"}, "mellum": windowed, "dots1": grouped, "exaone_moe": exaone_moe,
           "minicpm3": minicpm3, "falcon": falcon, "solar_open": grouped, "sarvam_moe": sarvam_moe,
           "gemma3n_text": gemma3n, "hrm_text": hrm_text, "mimo_v2_flash": mimo2, "bailing_hybrid": bailing_moe3}


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


# Whose keys only llama.cpp itself judges (tests/consumers/architectures.rs): their golden files have none.
KEYLESS = ("lfm2", "lfm2_moe", "granitemoe", "granitemoeshared", "glm4_moe", "glm4_moe_lite", "laguna", "ernie4_5", "ernie4_5_moe", "seed_oss",
           "olmo3", "olmoe", "hunyuan_v1_dense", "hunyuan_v1_moe", "exaone4", "afmoe", "arcee", "qwen3_vl_moe", "muse_glimmer")


def golden(name):
    import torch
    from safetensors.numpy import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Mistral4ForCausalLM
    kind, changes = MODELS[name]
    family = AutoModelForImageTextToText if "vision_config" in changes else AutoModelForCausalLM
    family = Mistral4ForCausalLM if kind == "mistral4" else family
    config = AutoConfig.for_model(kind, **changes)
    folder = tempfile.mkdtemp()
    try:
        (family(config) if kind == "mistral4" else family.from_config(config)).save_pretrained(folder)
        path = os.path.join(folder, "model.safetensors")
        shapes = {tensor: list(array.shape) for tensor, array in sorted(load_file(path).items())}
        tensors = {tensor: [shape, *spread(kind, tensor, shape)] for tensor, shape in shapes.items()}
        save_file({tensor: numbers(tensor, *how) for tensor, how in tensors.items()}, path, metadata={"format": "pt"})
        model = family.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with open(os.path.join(folder, "config.json"), encoding="utf8") as file:
            saved = json.load(file)
    finally:
        shutil.rmtree(folder)
    places = numbers("tokens", [WINDOWS, LENGTH], 0.5, 0.5)
    windows = np.minimum((places * 2000).astype(np.int64), 1999)
    windows[:, 0] = 2046
    with torch.no_grad():
        said = model(torch.tensor(windows), output_hidden_states=True)
    logs = torch.log_softmax(said.logits.double(), -1)
    # What embedding models are for.
    both_ways = saved.get("use_bidirectional_attention")
    means = ',\n"means": %s' % json.dumps(np.round(said.hidden_states[-1].mean(1).tolist(), 6).tolist()) if both_ways else ""
    scored = logs[:, :-1].gather(2, torch.tensor(windows)[:, 1:, None])[:, :, 0]
    saved = {key: value for key, value in saved.items() if key not in ("transformers_version", "dtype")}
    if kind == "gemma3_text" and saved["use_bidirectional_attention"]:
        saved["architectures"] = ["Gemma3TextModel"]  # EmbeddingGemma's own: a class that writes text is refused
    text = {tensor: how for tensor, how in tensors.items() if not re.search(r"(^|\.)(visual|vision_tower|multi_modal_projector)\.", tensor)}
    found = {} if kind in KEYLESS else keys(kind, model.config)
    for part in ("alpha_n", "alpha_p", "beta", "eps") if kind == "apertus" else ():
        own = [(tensor, how) for tensor, how in tensors.items() if tensor.endswith(f".{part}")]
        found[f"xielu.{part}"] = [float(str(np.ravel(numbers(tensor, *how))[0])) for tensor, how in own]
    rows = ",\n".join(f"  {json.dumps(tensor)}: {json.dumps(how)}" for tensor, how in text.items())
    with open(os.path.join(ROOT, "tests", "architectures", f"{name}.json"), "w", encoding="utf8") as file:
        file.write('{"config": %s,\n"keys": %s,\n"tensors": {\n%s\n},\n"windows": %s,\n"logprobs": %s%s}\n' % (
            json.dumps(saved, indent=1), json.dumps(found, indent=1), rows, json.dumps(windows.tolist()),
            json.dumps([[round(x, 6) for x in row] for row in scored.tolist()]), means))
    print(name, float(scored.mean()))


for name in sys.argv[1:] or MODELS:
    golden(name)
