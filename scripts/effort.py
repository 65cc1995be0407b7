#!/usr/bin/env python3
"""What time buys: quantizes a checkpoint with more and more effort and writes a table of seconds and divergences.

  scripts/effort.py [--model DIR] [--calib FILE] [--text FILE] [--chunks N] [--type Q4_K_S] [--seq-len 512] [--out eval/effort.md]

The three rows in bold are what `llmq quantize --effort` stands for; the others show what else there is around them. KL(original ||
file) of next-token distributions in nats, as `llmq eval --reference` measures it. Needs `cargo build --release`.
"""
import argparse, datetime, json, os, platform, re, shlex, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LLMQ = os.path.join(ROOT, "target", "release", "llmq")
ROWS = [
    "--method rtn",
    "--effort fast --samples 8",
    "--effort fast",
    "--effort fast --samples 128",
    "--effort fast --sweeps 6",
    "--method gptq --samples 32",
    "--method gptq",
    "--method auto --samples 32",
    "--effort balanced",
    "--samples 256",
    "--effort best",
]


def run(arguments):
    """The last JSON line of llmq."""
    done = subprocess.run([LLMQ, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"llmq {shlex.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cpu():
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            names = re.findall(r"^model name\s*: (.*)$", file.read(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


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
    load = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as work:
        file = os.path.join(work, "out.gguf")
        for options in ROWS:
            calib = ["--calib", a.calib] if a.calib and "rtn" not in options else []
            made = run(["quantize", a.model, "--type", a.type, "-o", file, "--force", "--seq-len", str(a.seq_len), *calib,
                        *options.split()])
            text = ["-f", a.text] if a.text else []
            chunks = ["--chunks", str(a.chunks)] if a.chunks else []
            judged = run(["eval", file, "--reference", a.model, *text, *chunks])
            rows.append((options, made["seconds"], judged["kl_divergence"], judged))
            print(f"{options}: {made['seconds']:.1f} s, {judged['kl_divergence']:.6f}", flush=True)
    base = dict((options, kl) for options, _, kl, _ in rows)["--effort balanced"]
    version = subprocess.run([LLMQ, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    judged = rows[0][3]
    lines = [
        "# What time buys", "",
        f"- Command: `{shlex.join(['scripts/effort.py', *sys.argv[1:]])}`",
        f"- Model: {os.path.relpath(a.model)} to {a.type}; {version}, commit {commit.strip()}",
        f"- Machine: {cpu()}, {cores} cores, load average {load:.1f} before it began",
        f"- Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"- Windows of {a.seq_len} tokens; judged on {judged['windows']} windows of {judged['context']} tokens", "",
        "| `llmq quantize` with | seconds | KL divergence | ratio to balanced |", "|---|---|---|---|",
    ]
    for options, seconds, kl, _ in rows:
        preset = options.startswith("--effort") and options.count("--") == 1
        shown = f"**`{options}`**" if preset else f"`{options}`"
        lines.append(f"| {shown} | {seconds:.1f} | {kl:.6f} | {kl / base:.2f} |")
    with open(a.out, "w", encoding="utf8") as out:
        out.write("\n".join(lines) + "\n")


main()
