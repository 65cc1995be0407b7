// Asks real llama.cpp (node-llama-cpp's prebuilt CPU binary) how it reads a GGUF: tokens, log-probabilities, metadata.
//
//   echo '[{"model": "m.gguf", "texts": ["Hi"], "logprobs": [[1, 2, 3]], "vocab_size": 8192}]' | node llama.mjs
//
// Needs scripts/setup-consumers.sh. Reads a JSON list of requests on stdin and writes a list of answers to stdout; what llama.cpp
// logs goes to stderr. Exits 1 with a message when anything fails.
//
// Request: model (path); texts, logprobs and vocab_size may be left out. vocab_size, when given, must be the number of
// logits that the model returns. Instead of the list there may be one object with texts and a list of paths, vocabularies, of
// which only the vocabulary is loaded; the answers are then tokens_special and warnings. Or there may be an object with texts and a
// list of paths, encoders; the answers are then embeddings, a vector per text (which may be a list of tokens), tokens as below, and
// warnings. Or one with texts and a path, reranker; the answer is then a list of scores.
// Or one with a list of paths, contexts, and a size in tokens; the answer is then what llama.cpp logs of each context.
//
// Answer:
//   tokens          per text, its ids; "<|special|>" text is read as plain text. BOS is never added: a caller who wants it
//                   puts `bos` in front where `add_bos` is true
//   tokens_special  the same, with the text of special tokens read as those tokens; no BOS either
//   logprobs        per sequence t[0..n], n-1 numbers: ln p(t[i+1] | t[0..=i]), exact softmax over the whole vocabulary
//   top             per sequence, the most likely id at each of those n-1 places
//   bos, eos        ids or null
//   add_bos         whether llama.cpp puts BOS in front of a prompt
//   chat_template   text or null
//   metadata        the file's general.* keys, without the prefix
//   warnings        llama.cpp's log lines of level warning or worse
//
// Precision: the context is set up for exactness (keys and values kept in f32, no flash attention). llama.cpp converts
// activations to suit the weights' type (f16 for F16, bf16 for BF16, 8-bit blocks for quantized types), so only an F32
// file gives the log-probabilities of a float32 forward pass.

import {createRequire} from "node:module";
import {existsSync, readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const STEP = 32; // tokens evaluated at a time: bounds the memory, as each brings a Map of the whole vocabulary

console.log = console.info = console.error; // stdout carries the answer alone

/** node-llama-cpp from .consumers/node, which lies outside this file's own module path. */
async function consumer() {
    const home = new URL("../../.consumers/node/package.json", import.meta.url);
    if (!existsSync(home))
        throw new Error("node-llama-cpp is not installed; run scripts/setup-consumers.sh");
    return import(pathToFileURL(createRequire(home).resolve("node-llama-cpp")));
}

/** ln softmax(logits)[id]; `logits` is a Map from id to logit, largest first. */
function logSoftmax(logits, id) {
    const [max] = logits.values();
    let sum = 0;
    for (const logit of logits.values())
        sum += Math.exp(logit - max);
    return logits.get(id) - max - Math.log(sum);
}

/** The log-probability of every token after the first, and the most likely token in each of their places. */
async function evaluate(model, ids, vocabSize) {
    const context = await model.createContext({
        contextSize: ids.length,
        flashAttention: false,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32"
    });
    const sequence = context.getSequence();
    const logprobs = [];
    const top = [];
    for (let start = 0; start < ids.length - 1; start += STEP) {
        const step = ids.slice(start, Math.min(start + STEP, ids.length - 1));
        const results = await sequence.controlledEvaluate(step.map((id) => [id, {generateNext: {logits: true}}]));
        results.forEach(({next: {logits}}, i) => {
            if (vocabSize !== undefined && logits.size !== vocabSize)
                throw new Error(`llama.cpp returned ${logits.size} logits, not vocab_size = ${vocabSize}`);
            const id = ids[start + i + 1];
            const logprob = logSoftmax(logits, id);
            if (!Number.isFinite(logprob))
                throw new Error(`llama.cpp gave token ${id} at place ${start + i + 1} a log-probability of ${logprob}`);
            logprobs.push(logprob);
            top.push(logits.keys().next().value);
        });
    }
    await context.dispose();
    return {logprobs, top};
}

/** llama.cpp, which adds its warnings to the list. */
async function start(warnings) {
    const {getLlama, LlamaLogLevel} = await consumer();
    return getLlama({
        gpu: false,
        build: "never",
        skipDownload: true,
        progressLogs: false,
        maxThreads: 1, // the default is at least 4, whose spinning makes a busy machine with 2 cores crawl
        logLevel: LlamaLogLevel.warn,
        logger(level, message) {
            warnings.push(message.trimEnd());
            console.error(message.trimEnd());
        }
    });
}

async function tokenize({vocabularies, texts}) {
    const warnings = [];
    const llama = await start(warnings);
    const results = [];
    for (const modelPath of vocabularies) {
        const model = await llama.loadModel({modelPath, vocabOnly: true});
        const tokens_special = texts.map((text) => [...model.tokenize(text, true)]);
        results.push({tokens_special, warnings: warnings.splice(0)});
        await model.dispose();
    }
    await llama.dispose();
    return results;
}

/** What encoders make of texts. */
async function embed({encoders, texts}) {
    const warnings = [];
    const llama = await start(warnings);
    const results = [];
    for (const modelPath of encoders) {
        const model = await llama.loadModel({modelPath});
        const context = await model.createEmbeddingContext({contextSize: 256});
        const embeddings = [];
        for (const text of texts)
            embeddings.push([...(await context.getEmbeddingFor(text)).vector]);
        const tokens = texts.map((text) => (typeof text === "string" ? [...model.tokenize(text, false)] : text));
        results.push({embeddings, tokens, warnings: warnings.splice(0)});
        await context.dispose();
        await model.dispose();
    }
    await llama.dispose();
    return results;
}

/** What llama.cpp says when it makes a context for each model, with keys and values in half precision, as it does on a GPU. */
async function load({contexts, size}) {
    const {getLlama, LlamaLogLevel} = await consumer();
    const lines = [];
    const logger = (level, message) => lines.push(message.trimEnd());
    const llama = await getLlama({
        gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: 1, logLevel: LlamaLogLevel.info, logger
    });
    const results = [];
    for (const modelPath of contexts) {
        const model = await llama.loadModel({modelPath});
        lines.splice(0);
        const context = await model.createContext({contextSize: size, batchSize: 512, flashAttention: true});
        // Lines come a little later than what they are about.
        await new Promise((resolve) => setTimeout(resolve, 100));
        results.push(lines.splice(0));
        await context.dispose();
        await model.dispose();
    }
    await llama.dispose();
    return results;
}

/** What a reranker makes of texts. */
async function rank({reranker: modelPath, texts}) {
    const llama = await start([]);
    const model = await llama.loadModel({modelPath});
    const context = await model.createRankingContext({contextSize: 256, template: "{{query}}{{document}}"});
    const scores = [];
    for (const text of texts)
        scores.push(await context.rank("", text));
    await llama.dispose();
    return scores;
}

async function answers(requests) {
    const warnings = [];
    const llama = await start(warnings);
    const results = [];
    for (const request of requests)
        results.push({...await answer(llama, request), warnings: warnings.splice(0)});
    await llama.dispose();
    return results;
}

async function answer(llama, {model: modelPath, texts = [], logprobs = [], vocab_size}) {
    const model = await llama.loadModel({modelPath});
    const {general, tokenizer} = model.fileInfo.metadata;

    const evaluated = [];
    for (const ids of logprobs)
        evaluated.push(await evaluate(model, ids, vocab_size));

    const result = {
        tokens: texts.map((text) => [...model.tokenize(text, false)]),
        tokens_special: texts.map((text) => [...model.tokenize(text, true)]),
        logprobs: evaluated.map(({logprobs}) => logprobs),
        top: evaluated.map(({top}) => top),
        bos: model.tokens.bos,
        eos: model.tokens.eos,
        add_bos: model.tokens.shouldPrependBosToken,
        chat_template: tokenizer?.chat_template ?? null,
        metadata: general
    };
    await model.dispose();
    return result;
}

try {
    const request = JSON.parse(readFileSync(0, "utf8"));
    const run = request.vocabularies ? tokenize : request.encoders ? embed : request.reranker ? rank : request.contexts ? load : answers;
    const result = await run(request);
    const plain = (_, value) => (typeof value === "bigint" ? Number(value) : value); // 64-bit metadata
    process.stdout.write(JSON.stringify(result, plain) + "\n");
} catch (error) {
    console.error(`llama.mjs: ${error.message}`);
    process.exitCode = 1;
}
