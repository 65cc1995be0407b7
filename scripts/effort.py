#!/usr/bin/env python3
"""What time buys: quantizes a checkpoint with more and more effort and writes a table of seconds and divergences.

  scripts/effort.py [--model DIR] [--calib FILE] [--text FILE] [--chunks N] [--type Q4_K_S] [--seq-len 512] [--out eval/effort.md]

The three rows in bold are what `llmq quantize --effort` stands for; the others show what else there is around them. KL(original ||
file) of next-token distributions in nats, as `llmq eval --reference` measures it. Needs `cargo build --release`.
"""
import argparse, json, os, shlex, subprocess, sys, tempfile
from machine import LLMQ, ROOT, header, shown

ROWS = [
    "--method rtn",
    "--effort fast --no-gptaq --sweeps 0",
    "--effort fast --no-gptaq",
    "--effort fast",
    "--method gptq",
    "--method auto --samples 32",
    "--effort balanced",
    "--effort best",
]


def run(arguments):
    """The last JSON line of llmq, and its processor seconds, which other work on the machine lengthens less than those of day."""
    before = os.times()
    done = subprocess.run([LLMQ, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"llmq {shlex.join(arguments)} failed:\n{done.stderr[-2000:]}")
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout.splitlines()[-1]), busy


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=os.path.join(ROOT, "eval", "tiny"))
    p.add_argument("--calib", help="calibration text [default: the one that is built in]")
    p.add_argument("--text", help="text to judge on [default: the one that is built in]")
    p.add_argument("--chunks", type=int)
    p.add_argument("--type", default="Q4_K_S")
    p.add_argument("--seq-len", type=int, default=512)
    p.add_argument("--out", default=os.path.join(ROOT, "eval", "effort.md"))
    a = p.parse_args()
    about = header()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        file = os.path.join(work, "out.gguf")
        for options in ROWS:
            calib = ["--calib", a.calib] if a.calib and "rtn" not in options else []
            made, busy = run(["quantize", a.model, "--type", a.type, "-o", file, "--force", "--seq-len", str(a.seq_len), *calib,
                        *options.split()])
            text = ["-f", a.text] if a.text else []
            chunks = ["--chunks", str(a.chunks)] if a.chunks else []
            judged, _ = run(["eval", file, "--reference", a.model, *text, *chunks])
            rows.append((options, busy, made["seconds"], judged["kl_divergence"], judged))
            print(f"{options}: {busy:.1f} processor s, {made['seconds']:.1f} s, {judged['kl_divergence']:.6f}", flush=True)
    base = dict((options, kl) for options, _, _, kl, _ in rows)["--effort balanced"]
    judged = rows[0][4]
    lines = [
        "# What time buys", "",
        *about,
        f"- Model: {shown(a.model)} to {a.type}",
        f"- Windows of {a.seq_len} tokens; judged on {judged['windows']} windows of {judged['context']} tokens", "",
        "| `llmq quantize` with | processor seconds | seconds | KL divergence | ratio to balanced |", "|---|---|---|---|---|",
    ]
    for options, busy, seconds, kl, _ in rows:
        preset = options.startswith("--effort") and options.count("--") == 1
        name = f"**`{options}`**" if preset else f"`{options}`"
        lines.append(f"| {name} | {busy:.0f} | {seconds:.0f} | {kl:.6f} | {kl / base:.2f} |")
    with open(a.out, "w", encoding="utf8") as out:
        out.write("\n".join(lines) + "\n")


main()
