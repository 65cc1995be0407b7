use super::*;

fn converted(params: &Value) -> Result<Value> {
    equivalent(&Config::of(PARAMS.into(), params.clone()).unwrap())
}

fn with(mut params: Value, more: Value) -> Value {
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

fn dense() -> Value {
    json!({
        "dim": 4096, "n_layers": 4, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-5, "vocab_size": 32768, "rope_theta": 1e6,
    })
}

#[track_caller]
fn refuses(more: Value, told: &str) {
    let error = converted(&with(dense(), more)).unwrap_err();
    assert!(error.to_string().contains(told) && error.to_string().contains(PARAMS), "no {told:?} in {error}");
}

#[test]
fn a_dense_model_has_the_usual_keys() {
    // What the same model's config.json has.
    let wanted = json!({
        "model_type": MODEL_TYPE, "hidden_size": 4096, "num_hidden_layers": 4, "head_dim": 128, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 32768, "hidden_act": "silu",
        "tie_word_embeddings": false, "max_position_embeddings": 128000,
        "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 },
    });
    assert_eq!(converted(&dense()).unwrap(), wanted);
    let nothing = json!({ "moe": null, "use_biases": false, "q_lora_rank": null, "vision_encoder": { "dim": 1024 }, "lora": null });
    assert_eq!(converted(&with(dense(), nothing)).unwrap(), wanted);
    let more = json!({ "tied_embeddings": true, "max_seq_len": 32768, "sliding_window": 4096 });
    let config = converted(&with(dense(), more)).unwrap();
    assert_eq!((&config["tie_word_embeddings"], &config["max_position_embeddings"]), (&json!(true), &json!(32768)));
    assert_eq!(config["sliding_window"], 4096);
}

#[test]
fn yarn_is_that_of_ministral_3() {
    let yarn = |apply: bool| {
        json!({
            "yarn": { "original_max_position_embeddings": 16384, "factor": 16, "apply_scale": apply, "beta": 32, "alpha": 1 },
            "llama_4_scaling": { "original_max_position_embeddings": 16384, "beta": 0.1 },
        })
    };
    let rope = |apply| converted(&with(dense(), yarn(apply))).unwrap()["rope_parameters"].take();
    let scaled = json!({
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16, "original_max_position_embeddings": 16384, "beta_fast": 32,
        "beta_slow": 1, "llama_4_scaling_beta": 0.1,
    });
    assert_eq!(rope(true), scaled);
    assert_eq!(rope(false), with(scaled, json!({ "mscale": 1.0, "mscale_all_dim": 1.0 })));
    let without = |key: &str| {
        let mut more = yarn(false);
        more["yarn"].as_object_mut().unwrap().remove(key);
        more
    };
    refuses(without("apply_scale"), "apply_scale");
    refuses(without("beta"), "yarn.beta");
    refuses(
        with(yarn(true), json!({ "llama_4_scaling": { "original_max_position_embeddings": 8192, "beta": 0.1 } })),
        "8192",
    );
    refuses(json!({ "yarn": { "gamma": 1 } }), "'yarn.gamma'");
}

#[test]
fn experts_and_latent_attention_have_deepseeks_names() {
    let large = json!({
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "moe": {
            "num_experts": 128, "num_experts_per_tok": 4, "expert_hidden_dim": 4096, "num_shared_experts": 1,
            "first_k_dense_replace": 0, "route_every_n": 1, "routed_scale": 1.0, "num_expert_groups": 1,
            "num_expert_groups_per_tok": 1, "expert_parallel": null,
        },
    });
    let config = converted(&with(dense(), large)).unwrap();
    for (key, wanted) in [
        ("kv_lora_rank", json!(512)),
        ("num_local_experts", json!(128)),
        ("n_routed_experts", json!(128)),
        ("num_experts_per_tok", json!(4)),
        ("moe_intermediate_size", json!(4096)),
        ("n_shared_experts", json!(1)),
        ("first_k_dense_replace", json!(0)),
        ("routed_scaling_factor", json!(1.0)),
        ("norm_topk_prob", json!(true)),
        ("scoring_func", json!("softmax")),
        ("n_group", json!(1)),
        ("topk_group", json!(1)),
        ("moe_layer_freq", json!(1)),
    ] {
        assert_eq!(config[key], wanted, "{key}");
    }
    let mixtral = converted(&with(dense(), json!({ "moe": { "num_experts": 8, "num_experts_per_tok": 2 } }))).unwrap();
    assert_eq!((&mixtral["num_local_experts"], mixtral.get("n_shared_experts")), (&json!(8), None));
    refuses(json!({ "moe": { "num_experts": 8 } }), "moe.num_experts_per_tok");
    refuses(json!({ "moe": { "num_experts": 8, "num_experts_per_tok": 2, "bias": true } }), "'moe.bias'");
}

#[test]
fn windows_that_repeat_become_kinds_of_layers() {
    let windows = |list: Value| converted(&with(dense(), json!({ "_sliding_window": list })));
    let config = windows(json!([null, 32768])).unwrap();
    let (full, sliding) = ("full_attention", "sliding_attention");
    assert_eq!(config["sliding_window"], 32768);
    assert_eq!(config["layer_types"], json!([full, sliding, full, sliding]));
    for odd in [json!([null, 1, 2]), json!([1, 2]), json!([null]), json!([]), json!([0]), json!(["a"])] {
        assert!(windows(odd.clone()).is_err(), "{odd}");
    }
    refuses(json!({ "n_layers": 4_000_000_000u32, "sliding_window": [null, 1] }), "'n_layers' is 4000000000");
}

#[test]
fn what_would_change_the_numbers_is_refused_by_name() {
    refuses(json!({ "multiple_of": 256 }), "'multiple_of': \"256\"");
    refuses(json!({ "use_biases": true }), "'use_biases'");
    refuses(json!({ "activation": "gelu" }), "gelu");
    refuses(json!({ "model_type": "mamba" }), "mamba");
    refuses(json!({ "causal": false }), "sees the future");
    refuses(json!({ "rope_theta": null }), "no 'rope_theta'");
    refuses(json!({ "norm_eps": "small" }), "norm_eps");
    refuses(json!({ "dim": -1 }), "'dim' is -1");
    refuses(json!({ "quantization": { "qformat_weight": "nvfp4" } }), "nvfp4");
    let fp8 = json!({ "quantization": { "qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR" } });
    let fp8 = converted(&with(dense(), fp8)).unwrap();
    assert_eq!(fp8["quantization_config"], json!({ "quant_method": "fp8", "activation_scheme": "static" }));
}

#[test]
fn a_folder_in_this_layout_needs_no_other_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let open = || Config::open(&folder.path().join("config.json"));
    assert!(open().unwrap_err().to_string().contains("cannot read"));
    put(PARAMS, &dense().to_string());
    assert_eq!(open().unwrap().string("model_type").unwrap(), MODEL_TYPE);
    // A configuration of transformers counts if its weights are there, or none at all.
    put("config.json", r#"{"model_type": "mistral"}"#);
    assert_eq!(open().unwrap().string("model_type").unwrap(), "mistral");
    put("consolidated.safetensors", "");
    assert_eq!(open().unwrap().string("model_type").unwrap(), MODEL_TYPE);
    put("model-00001-of-00002.safetensors", "");
    assert_eq!(open().unwrap().string("model_type").unwrap(), "mistral");
}
