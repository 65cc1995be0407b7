#!/usr/bin/env python3
"""What each ingredient is worth: quantizes a checkpoint with more and more of them and writes a table of the divergences.

  scripts/ablation.py [--model DIR] [--calib FILE] [--text FILE] [--chunks N] [--samples N] [--seq-len N] [--seeds 0,1,2]
                      [--types Q4_0,Q4_K_S,Q2_K] [--rows 3,4,8,9,10] [--out eval/ablation.md]

Without options: the embedded checkpoint and texts, some minutes. KL(original || file) of next-token distributions in nats,
mean over the scored tokens of `llmq eval --reference`. All rows of a type see the same text; a seed draws the same windows
of calibration text for every row. The table is written anew after each type, and with the rows that are done if the run is
interrupted. Needs only python3 and `cargo build --release`.
"""
import argparse, json, os, re, shlex, statistics, subprocess, sys, tempfile, time
from machine import LLMQ, ROOT, header, shown

# Name, options, and whether the seed, which draws the calibration windows, makes any difference. {imatrix} and {embedding}
# are filled in. What GPTQ is given beyond its paper is added one by one.
ROWS = [
    ("RTN", "--method rtn", False),
    ("RTN + search weighed by importance", "--method rtn --imatrix {imatrix}", False),
    ("AWQ", "--method awq --no-gptaq", True),
    ("GPTQ", "--method gptq --no-gptaq --no-order --sweeps 0", True),
    ("GPTQ + order", "--method gptq --no-gptaq --sweeps 0", True),
    ("GPTQ + order + polish of codes", "--method gptq --no-gptaq --sweeps 6 --no-scale-sweeps", True),
    ("GPTQ + order + polish of codes and scales", "--method gptq --no-gptaq", True),
    ("GPTQ + all that, asymmetric calibration", "--method gptq", True),
    ("AWQ + GPTQ", "--method awq+gptq", True),
    ("auto", "--method auto", True),
    ("auto + rotation", "--method auto --rotate --token-embedding-type {embedding}", True),
]
BASE = "GPTQ"


class Failed(Exception):
    """A command that did not succeed."""


def llmq(*arguments):
    """Runs llmq; gives its JSON lines."""
    done = subprocess.run([LLMQ, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise Failed(f"llmq {shlex.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure(a, work, kind, options):
    """Quantizes to one type and compares: divergence, bytes, seconds, and what was scored."""
    file = os.path.join(work, "out.gguf")
    made = llmq("quantize", a.model, "--type", kind, "-o", file, "--force", *options)[-1]
    text = ["-f", a.text] if a.text else []
    chunks = ["--chunks", str(a.chunks)] if a.chunks else []
    judged = llmq("eval", file, "--reference", a.model, *text, *chunks)[-1]
    return dict(kl=judged["kl_divergence"], bytes=made["bytes"], seconds=made["seconds"], scored=judged)


def row(a, work, kind, options, seeded, said):
    """The runs of one row: one per seed, or one where the seed makes no difference."""
    runs = []
    for seed in a.seeds if seeded else a.seeds[:1]:
        drawn = ["--samples", str(a.samples), "--seq-len", str(a.seq_len), "--seed", str(seed)]
        if seeded and a.calib:
            drawn += ["--calib", a.calib]
        runs.append(measure(a, work, kind, options + (drawn if seeded else [])))
        which = f", seed {seed}" if seeded else ""
        print(f"{said}{which}: {runs[-1]['kl']:.6f}, {runs[-1]['seconds']:.1f} s", flush=True)
    return runs


def table(kind, rows):
    """The rows of one type as Markdown. Each is a name, its options, and its runs or why there are none."""
    means = {name: statistics.fmean(r["kl"] for r in runs) for name, _, runs in rows if not isinstance(runs, str)}
    lines = [f"## {kind}", "", "| | `llmq quantize` with | KL divergence | ± | ratio to GPTQ | bytes |", "|---|---|---|---|---|---|"]
    for name, options, runs in rows:
        if isinstance(runs, str):
            lines.append(f"| {name} | `{options}` | {runs} | | | |")
            continue
        kls = [r["kl"] for r in runs]
        spread = f"{(max(kls) - min(kls)) / 2:.6f}" if len(kls) > 1 else ""
        ratio = f"{means[name] / means[BASE]:.2f}" if BASE in means else ""
        sizes = "–".join(f"{n:,}" for n in sorted({r["bytes"] for r in runs}))
        lines.append(f"| {name} | `{options}` | {means[name]:.6f} | {spread} | {ratio} | {sizes} |")
    return lines + [""]


def write(a, head, done):
    """Writes the table anew, whole or not at all."""
    runs = [r for rows in done.values() for _, _, runs in rows if not isinstance(runs, str) for r in runs]
    lines = list(head)
    if runs:
        scored = runs[0]["scored"]
        text = shown(a.text) if a.text else "eval/heldout.txt, built in"
        lines.append(f"- Judged on: {text}; {scored['windows']} windows of {scored['context']} tokens, "
                     f"{scored['tokens']} scored, protocol {scored['protocol']}")
    missing = [kind for kind in a.types if kind not in done or len(done[kind]) < len(a.rows)]
    if missing:
        lines.append(f"- **Not complete**: {', '.join(missing)}")
    lines.append("")
    for kind, rows in done.items():
        if rows:
            lines += table(kind, rows)
    beside = a.out + ".part"
    with open(beside, "w", encoding="utf8") as file:
        file.write("\n".join(lines).rstrip("\n") + "\n")
    os.replace(beside, a.out)


def head_of(a):
    """What the table's reader needs to make it again."""
    calib = shown(a.calib) if a.calib else "eval/calibration.txt, built in"
    return [
        "# What each ingredient is worth", "",
        "KL divergence of next-token distributions, original to file, in nats: the mean over the scored tokens, and of that "
        "the mean over the seeds; ± is half the range over the seeds. A seed draws the windows of calibration text, the same "
        "for every row. RTN draws none: its importance matrix is that of the text's first windows, as many and as long. "
        "What each costs in time is in `effort.md`.", "",
        *header(),
        f"- Model: {shown(a.model)}",
        f"- Calibration: {calib}; {a.samples} windows of {a.seq_len} tokens, seeds {', '.join(map(str, a.seeds))}",
    ]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: [word for word in text.split(",") if word]
    numbers = lambda text: [int(word) for word in words(text)]
    p.add_argument("--model", default=os.path.join(ROOT, "eval", "tiny"), help="a checkpoint [default: eval/tiny]")
    p.add_argument("--calib", help="calibration text [default: the one that is built into llmq]")
    p.add_argument("--text", help="text to judge on [default: the one that is built into llmq]")
    p.add_argument("--chunks", type=int, help="windows to judge on, at most [default: all of the text]")
    p.add_argument("--samples", type=int, default=64, help="windows of calibration text [default: 64]")
    p.add_argument("--seq-len", type=int, default=512, help="tokens per window of calibration text [default: 512]")
    p.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="[default: 0,1,2]")
    p.add_argument("--types", type=words, default=["Q4_0", "Q4_K_S", "Q2_K"], help="[default: Q4_0,Q4_K_S,Q2_K]")
    p.add_argument("--rows", type=numbers, default=list(range(1, len(ROWS) + 1)), help="by their place in the table [default: all]")
    p.add_argument("--out", default=os.path.join(ROOT, "eval", "ablation.md"), help="[default: eval/ablation.md]")
    a = p.parse_args()
    a.rows = [ROWS[i - 1] for i in a.rows if 0 < i <= len(ROWS)]
    if not a.seeds or not a.types or not a.rows:
        p.error("--seeds, --types and --rows need at least one each")
    return a


def run(a, work, done):
    """Fills `done`: the rows of each type."""
    head = head_of(a)
    usage = subprocess.run([LLMQ, "quantize", "--help"], capture_output=True, text=True, check=True).stdout
    knows = set(re.findall(r"--[a-z][a-z-]*", usage))
    imatrix = os.path.join(work, "imatrix.gguf")
    text = ["-f", a.calib] if a.calib else []
    llmq("imatrix", a.model, "-o", imatrix, "-c", str(a.seq_len), "--chunks", str(a.samples), *text)
    try:
        for kind in a.types:
            done[kind] = []
            planned = llmq("quantize", a.model, "--type", kind, "--method", "rtn", "--dry-run")
            # Rotation unties a tied embedding, which would get a smaller type of its own.
            embedding = next(t["to"] for t in planned if t.get("name") == "token_embd.weight")
            for i, (name, options, seeded) in enumerate(a.rows):
                said = f"{kind} {i + 1}/{len(a.rows)} {name}"
                public = options.format(imatrix="imatrix.gguf", embedding=embedding)
                unknown = [word for word in options.split() if word.startswith("--") and word not in knows]
                if unknown:
                    runs = f"skipped: this llmq has no {unknown[0]}"
                    print(f"{said}: {runs}", flush=True)
                else:
                    filled = [word.format(imatrix=imatrix, embedding=embedding) for word in options.split()]
                    runs = row(a, work, kind, filled, seeded, said)
                done[kind].append((name, public, runs))
            write(a, head, done)
    except (KeyboardInterrupt, Failed):
        if any(done.values()):
            write(a, head, done)
        raise


def main():
    a = arguments()
    if not os.path.exists(LLMQ):
        sys.exit(f"there is no {shown(LLMQ)}: run `cargo build --release` first")
    started, done = time.monotonic(), {}
    try:
        with tempfile.TemporaryDirectory() as work:
            run(a, work, done)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {shown(a.out)} holds what was done" if any(done.values()) else "interrupted")
    except Failed as failure:
        sys.exit(str(failure))
    print(f"{shown(a.out)}: {time.monotonic() - started:.0f} s in all")


main()
