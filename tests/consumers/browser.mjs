// Opens a page in headless Chromium and says what became of it.
//
// Reads {"page": FILE, "views": [{"width": N, "scheme": "light" | "dark", "screenshot": FILE?}]} from standard input, and writes
// for each view {"errors", "requests", "width", "marks", "data", "tip"}: what the console complained about, the addresses that
// were asked for, how wide the content is, each mark of a plot with its numbers and its box, the JSON lines of the page, and what
// is shown beside the first mark of the first plot after a key was pressed there.
//
// Speaks the DevTools protocol through Chromium's own pipe (https://chromedevtools.github.io/devtools-protocol/): messages of JSON,
// each ended by a zero byte. Needs no package.
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const request = JSON.parse(readFileSync(0, "utf8"));
const profile = mkdtempSync(join(tmpdir(), "llmq-browser-"));
const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
  "--disable-component-update", "--disable-background-networking", "--remote-debugging-pipe", `--user-data-dir=${profile}`];
const browser = spawn(process.env.CHROMIUM ?? "chromium", flags, { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] });
let said = "";
browser.stderr.on("data", (bytes) => { said += bytes; });
browser.on("error", (cause) => { console.error(`cannot run chromium: ${cause.message}`); process.exit(1); });

const waiting = new Map();
const listeners = new Set();
let rest = "";
browser.stdio[4].setEncoding("utf8");
browser.stdio[4].on("data", (text) => {
  const messages = (rest + text).split("\0");
  rest = messages.pop();
  for (const message of messages.map((one) => JSON.parse(one))) {
    if (message.id === undefined) { for (const listener of listeners) listener(message); continue; }
    const { resolve, reject } = waiting.get(message.id);
    waiting.delete(message.id);
    if (message.error) reject(new Error(message.error.message)); else resolve(message.result);
  }
});

let last = 0;
function call(method, params = {}, sessionId = undefined) {
  return new Promise((resolve, reject) => {
    last += 1;
    waiting.set(last, { resolve, reject });
    browser.stdio[3].write(JSON.stringify({ id: last, method, params, sessionId }) + "\0");
  });
}

// Runs in the page.
const look = () => ({
  width: document.documentElement.scrollWidth,
  data: document.getElementById("llmq-data").textContent,
  // Those in a closed <details> are nowhere.
  marks: [...document.querySelectorAll(".m")].filter((mark) => mark.checkVisibility()).map((mark) => {
    const { x, y, width, height } = (mark.querySelector(".bar, circle") ?? mark).getBoundingClientRect();
    return { plot: mark.closest("svg").id, data: { ...mark.dataset }, label: mark.getAttribute("aria-label"), x, y, width, height };
  }),
});

async function view({ width, scheme, screenshot }) {
  const { targetId } = await call("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await call("Target.attachToTarget", { targetId, flatten: true });
  const errors = [], requests = [];
  let loaded;
  const isLoaded = new Promise((resolve) => { loaded = resolve; });
  const listener = ({ method, params, sessionId: own }) => {
    if (own !== sessionId) return;
    if (method === "Runtime.exceptionThrown") errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Runtime.consoleAPICalled") errors.push(params.args.map((arg) => arg.value).join(" "));
    if (method === "Log.entryAdded") errors.push(params.entry.text);
    if (method === "Network.requestWillBeSent") requests.push(params.request.url);
    if (method === "Page.loadEventFired") loaded();
  };
  listeners.add(listener);
  const own = (method, params) => call(method, params, sessionId);
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await own(`${domain}.enable`);
  await own("Emulation.setDeviceMetricsOverride", { width, height: 900, deviceScaleFactor: 1, mobile: width < 600 });
  await own("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  await own("Page.navigate", { url: pathToFileURL(request.page).href });
  await isLoaded;
  const run = async (expression) => {
    const { result, exceptionDetails } = await own("Runtime.evaluate", { expression, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception.description);
    return result.value;
  };
  const seen = await run(`(${look})()`);
  if (screenshot) {
    const { data } = await own("Page.captureScreenshot", { format: "png", captureBeyondViewport: true });
    writeFileSync(screenshot, Buffer.from(data, "base64"));
  }
  await run(`document.querySelector(".plot svg").focus()`);
  for (const type of ["keyDown", "keyUp"]) await own("Input.dispatchKeyEvent", { type, key: "ArrowRight", code: "ArrowRight", windowsVirtualKeyCode: 39 });
  const tip = await run(`getComputedStyle(tip).visibility === "visible" ? tip.textContent : ""`);
  listeners.delete(listener);
  await call("Target.closeTarget", { targetId });
  return { errors, requests, tip, ...seen };
}

const limit = setTimeout(() => { console.error(`chromium does not answer; it said:\n${said}`); browser.kill(); process.exit(1); }, 120_000);
try {
  const views = [];
  for (const one of request.views) views.push(await view(one));
  process.stdout.write(JSON.stringify(views));
} finally {
  clearTimeout(limit);
  await Promise.race([call("Browser.close"), new Promise((resolve) => setTimeout(resolve, 2000))]).catch(() => {});
  await new Promise((resolve) => { if (browser.exitCode !== null) resolve(); browser.on("exit", resolve); setTimeout(() => { browser.kill(); resolve(); }, 3000); });
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}
