// How long llama.cpp (node-llama-cpp's prebuilt CPU binary) takes to read windows of tokens, after one to warm up.
//
//   node scripts/llama_speed.mjs MODEL.gguf WINDOWS TOKENS THREADS
//
// Prints seconds. Needs scripts/setup-consumers.sh.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const home = new URL("../.consumers/node/package.json", import.meta.url);
const {getLlama} = await import(pathToFileURL(createRequire(home).resolve("node-llama-cpp")));
const [file, windows, tokens, threads] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: Number(threads), logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: Number(tokens), batchSize: Number(tokens), threads: Number(threads)});
const sequence = context.getSequence();

async function read(seed) {
    const ids = Array.from({length: Number(tokens)}, (_, i) => 3 + (i * 7919 + seed * 104729) % 1900);
    await sequence.clearHistory();
    await sequence.evaluateWithoutGeneratingNewTokens(ids);
}

await read(0);
const started = performance.now();
for (let i = 1; i <= Number(windows); i++)
    await read(i);
process.stdout.write(String((performance.now() - started) / 1000));
await model.dispose();
await llama.dispose();
