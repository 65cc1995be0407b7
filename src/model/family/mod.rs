//! The families of checkpoints, one file each: which configuration makes which blocks, and what tensors and keys are called.

use super::Architecture;

/// Declares the families: the file of each, and the architectures that it holds.
macro_rules! architectures {
    ($($file:ident: $($family:ident),+;)+) => {
        $(mod $file;)+

        /// Every architecture.
        pub static ARCHITECTURES: &[&dyn Architecture] = &[$($(&$file::$family),+),+];
    };
}

architectures! {
    llama: Llama;
    mistral3: Mistral3, MistralNative;
    qwen: Qwen2, Qwen3;
    qwen_moe: Qwen2Moe, Qwen3Moe;
    qwen_vl: Qwen2Vl, Qwen3Vl, Qwen3VlMoe;
    qwen35: Qwen35, Qwen35Moe, Qwen3Next;
    gemma: Gemma, Gemma2, Gemma3;
    embedding_gemma: EmbeddingGemma;
    gemma3n: Gemma3n;
    gemma4: Gemma4;
    phi2: Phi2;
    phi3: Phi3;
    smollm3: SmolLm3;
    granite: Granite, GraniteMoe, GraniteShared;
    olmo2: Olmo2;
    glm4: Glm4;
    stablelm: StableLm;
    starcoder2: StarCoder2;
    gpt2: Gpt2;
    gpt_neox: GptNeoX;
    gpt_oss: GptOss;
    deepseek2: DeepSeek2, Glm4MoeLite;
    deepseek32: DeepSeek32;
    olmoe: Olmoe;
    seed_oss: SeedOss;
    ernie4_5: Ernie45, Ernie45Moe;
    hunyuan: HunyuanDense, HunyuanMoe;
    arcee: Arcee;
    hrm_text: HrmText;
    muse_glimmer: MuseGlimmer;
    lfm2: Lfm2, Lfm2Moe;
    glm4_moe: Glm4Moe;
    laguna: Laguna;
    afmoe: AfMoe;
    exaone4: Exaone4;
    mistral4: Mistral4;
    llama4: Llama4;
    cohere: Cohere, Cohere2;
    cohere2_moe: Cohere2Moe;
    apertus: Apertus;
    minimax_m2: MiniMaxM2;
    hy_v3: HyV3;
    granite_swa: GraniteSwa;
    nemotron: Nemotron;
    nemotron_h: NemotronHMoe, NemotronH;
    granite_hybrid: GraniteHybrid;
    falcon_h1: FalconH1;
    mamba2: Mamba2;
    jamba: Jamba;
    mellum: Mellum;
    dots1: Dots1;
    exaone_moe: ExaoneMoe;
    jais2: Jais2;
    minicpm3: MiniCpm3;
    falcon: Falcon;
    bailing_moe2: BailingMoe2;
    bailing_moe3: BailingMoe3;
    mimo2: Mimo2;
    gpt_bigcode: GptBigCode;
}
