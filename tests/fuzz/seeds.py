#!/usr/bin/env python3
"""Writes the inputs that fuzzing starts from: small whole files of each format, some cut out of eval/tiny.

  tests/fuzz/seeds.py FOLDER        one folder in it for each target
"""
import base64, collections, io, json, os, pickle, struct, sys, types, zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def tiny(name):
    """A file of eval/tiny, as bytes."""
    with open(os.path.join(ROOT, "eval/tiny", name), "rb") as file:
        return file.read()


# The pattern of the published files, as src/source/pre_tokenizer/table.rs has it.
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# GGUF: numbers of types as in src/source/value.rs.
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def one(kind, value):
    return text(value) if kind == 8 else struct.pack(NUMBERS[kind], value)


def gguf(keys, tensors, version=3):
    """keys: name, type, value, where a list is an array; tensors: name, dimensions, type, offset; behind them 128 bytes."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, kind, value in keys:
        out += text(name)
        if isinstance(value, list):
            out += struct.pack("<IIQ", 9, kind, len(value)) + b"".join(one(kind, item) for item in value)
        else:
            out += struct.pack("<I", kind) + one(kind, value)
    for name, dims, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return out + bytes(-len(out) % 32) + bytes(range(128))


def ggufs():
    kinds = [(f"k{kind}", kind, 1) for kind in NUMBERS] + [(f"a{kind}", kind, [1, 0]) for kind in NUMBERS]
    tensors = [("a", [32, 1], 8, 0), ("b", [2, 2, 2], 0, 64), ("c", [0], 0, 96)]
    yield gguf([("general.alignment", 4, 32), ("s", 8, "\u00e9"), *kinds], tensors)
    spm = [
        ("tokenizer.ggml.model", 8, "llama"),
        ("tokenizer.ggml.tokens", 8, ["<unk>", "<s>", "</s>", "\u2581a", "b", "\u2581", "<0xC3>"]),
        ("tokenizer.ggml.scores", 6, [0, 0, 0, -1, -2, -3, 0]),
        ("tokenizer.ggml.token_type", 5, [2, 3, 3, 1, 1, 1, 6]),
        ("tokenizer.ggml.bos_token_id", 4, 1),
        ("tokenizer.ggml.add_bos_token", 7, 1),
        ("tokenizer.chat_template", 8, "{{ x }}"),
        ("tokenizer.chat_templates", 8, ["rag"]),
        ("tokenizer.chat_template.rag", 8, "r"),
    ]
    yield gguf(spm, [], version=2)
    bpe = [("tokenizer.ggml.merges", 8, ["a b"]), ("tokenizer.ggml.pre", 8, "llama-bpe")]
    yield gguf([("tokenizer.ggml.model", 8, "gpt2"), *spm[1:2], *bpe, ("split.count", 2, 1), ("split.no", 2, 0)], tensors)


def safetensors(tensors):
    """tensors: name -> type, shape, bytes."""
    header, data = {}, b""
    for name, (kind, shape, values) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    header = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(header)) + header + data


def safetensors_files():
    whole = tiny("model.safetensors")
    size = struct.unpack("<Q", whole[:8])[0]
    name, about = min(json.loads(whole[8 : 8 + size]).items(), key=lambda item: item[1].get("data_offsets", [0, 1 << 60])[1])
    halves = lambda n: b"\0\x3c" * n
    yield b"\0" + safetensors({name: (about["dtype"], [2, 3], halves(6)), "x": ("F32", [], b"\0\0\x80\x3f"), "e": ("I64", [0, 3], b"")})
    codes = {"x.qweight": ("I32", [1, 8], bytes(32)), "x.qzeros": ("I32", [1, 1], bytes(4)), "x.scales": ("F16", [1, 8], halves(8))}
    yield b"\1" + safetensors({**codes, "x.g_idx": ("I32", [8], bytes(32))})
    yield b"\2" + safetensors({**codes, "x.qweight": ("I32", [8, 1], bytes(32))})
    yield b"\3" + safetensors({
        "x.weight_packed": ("I32", [2, 1], bytes(8)), "x.weight_scale": ("BF16", [2, 1], b"\x80\x3f" * 2),
        "x.weight_shape": ("I64", [2], struct.pack("<2q", 2, 8)), "x.weight_zero_point": ("I8", [2, 1], bytes(2)),
    })
    yield b"\4" + safetensors({"x_blocks": ("U8", [1, 2, 1, 16], bytes(range(32))), "x_scales": ("U8", [1, 2, 1], b"\x7f" * 2)})
    yield b"\5" + safetensors({"x.weight": ("F8_E4M3", [3, 3], bytes(range(9))), "x.weight_scale_inv": ("F32", [2, 2], b"\0\0\x80\x3f" * 4)})


class Storage:
    """What a pickle of torch names a storage by."""

    def __init__(self, *place):
        self.place = place


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.place if isinstance(value, Storage) else None


def pickles():
    modules = {name: types.ModuleType(name) for name in ["torch", "torch._utils", "torch._tensor"]}

    def stand_in(module, name, kind):
        thing = type(name, (), {}) if kind == "class" else eval("lambda *a: None")
        thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
        setattr(modules[module], name, thing)
        return thing

    sys.modules.update(modules)
    rebuild, parameter = [stand_in("torch._utils", n, "") for n in ["_rebuild_tensor_v2", "_rebuild_parameter"]]
    storages = [stand_in("torch", n, "class") for n in ["FloatStorage", "HalfStorage", "LongStorage"]]

    class Reduced:
        def __init__(self, *call):
            self.call = call

        def __reduce__(self):
            return self.call

    def tensor(kind, shape, strides, offset=0):
        place = Storage("storage", storages[kind], "0", "cpu", 16)
        return Reduced(rebuild, (place, offset, shape, strides, False, collections.OrderedDict()))

    state = collections.OrderedDict(
        a=tensor(0, (2, 3), (3, 1)), b=tensor(1, (3, 2), (1, 3), 1), c=Reduced(parameter, (tensor(2, (2,), (1,)), True, {})), d=1.5, e=b"x"
    )
    for protocol in [2, 4]:
        out = io.BytesIO()
        Pickler(out, protocol).dump(state)
        yield out.getvalue()
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("m/data.pkl", out.getvalue())
        file.writestr("m/byteorder", "little")
        file.writestr("m/data/0", bytes(64))
    yield whole.getvalue()


# protobuf, for SentencePiece and ONNX.
def varint(value):
    out, value = b"", value & (1 << 64) - 1
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("\u2581", -3.0, 1), ("\u2581a", -1.0, 1), ("b", -2.0, 1), ("<0xC3>", 0.0, 6), ("x y", 0.0, 4)]


def sentencepieces():
    pieces = [(1, message((1, piece), (2, score), (3, kind))) for piece, score, kind in PIECES]
    spec = message((1, "nmt_nfkc"), (3, 1), (4, 0))
    for algorithm in [1, 2]:
        yield message(*pieces, (2, message((3, algorithm), (24, 0), (40, 0), (41, 1), (42, 2), (43, -1))), (3, spec))
    yield message(*pieces, (3, message((2, b"charsmap"), (4, 1))))


def tokenizers():
    whole = json.loads(tiny("tokenizer.json"))
    bytes_only = list(whole["model"]["vocab"])[:10]
    a, b = bytes_only[:2]
    whole["model"].update(vocab={token: i for i, token in enumerate([*bytes_only, a + b])}, merges=[[a, b]])
    for i, token in enumerate(whole["added_tokens"]):
        token["id"] = 11 + i
    whole["post_processor"]["special_tokens"]["<|begin_of_text|>"]["ids"] = [11]
    yield json.dumps(whole).encode()
    space = "\u2581"
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    spm = {
        "added_tokens": [{"id": i, "content": token, **flags, "special": True} for i, token in enumerate(["<unk>", "<s>"])],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, {"type": "Replace", "pattern": {"String": " "}, "content": space}]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 2, space: 3, "a": 4, space + "a": 5}, "merges": [space + " a"]},
    }
    yield json.dumps(spm, ensure_ascii=False).encode()
    metaspace = {"type": "Metaspace", "replacement": space, "prepend_scheme": "first", "split": False}
    yield json.dumps({**spm, "normalizer": None, "pre_tokenizer": metaspace}).encode()
    yield json.dumps({"added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [["<unk>", 0.0], [space + "a", -1.5], ["a", -2.0]]}, "normalizer": {"type": "NFKC"}, "pre_tokenizer": metaspace}).encode()


def tekkens():
    pattern = json.loads(tiny("tokenizer.json"))["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    texts = [b"a", b"b", b"\xc3", b"\xa9", b"ab", b" ", b" a"]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(text).decode(), "token_str": None} for i, text in enumerate(texts)]
    special = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(["<unk>", "<s>", "</s>"])]
    config = {"pattern": pattern, "default_vocab_size": 10, "default_num_special_tokens": 3, "version": "v7"}
    for pattern in [pattern, TEKKEN]:
        yield json.dumps({"config": {**config, "pattern": pattern}, "vocab": vocab, "special_tokens": special}, separators=(",", ":")).encode()


def imatrices():
    keys = [("general.type", 8, "imatrix"), ("imatrix.datasets", 8, ["t"]), ("imatrix.chunk_count", 4, 2), ("imatrix.chunk_size", 4, 8)]
    head = gguf(keys, [("w.in_sum2", [2, 2], 0, 0), ("w.counts", [1, 2], 0, 32)])[:-128]
    yield head + struct.pack("<4f", 1, 2, 3, 4) + bytes(16) + struct.pack("<2f", 8, 0) + bytes(24)
    name = lambda text: struct.pack("<i", len(text)) + text
    listed = name(b"w") + struct.pack("<ii2f", 4, 2, 8, 2)
    yield struct.pack("<i", 2) + listed + name(b"v") + struct.pack("<iif", 1, 1, 3) + struct.pack("<i", 7) + name(b"t.txt")


def onnx_tensor(name, shape, values=None, kind=1, **more):
    raw = [(9, struct.pack(f"<{len(values)}f", *values) if kind == 1 else struct.pack(f"<{len(values)}q", *values))] if values is not None else []
    return message(*[(1, n) for n in shape], (2, kind), (8, name), *raw, *more.get("fields", []))


def onnx_value(name, *dims):
    sizes = b"".join(field(1, message((1, n) if isinstance(n, int) else (2, n))) for n in dims)
    return message((1, name), (2, message((1, message((1, 1), (2, sizes))))))


def onnx_node(op, inputs, outputs, *attributes):
    return message(*[(1, n) for n in inputs], *[(2, n) for n in outputs], (3, outputs[0]), (4, op), *[(5, a) for a in attributes])


def onnx_model(nodes, initializers, inputs, outputs, opset=17, version=8):
    graph = message(*[(1, n) for n in nodes], (2, "g"), *[(5, t) for t in initializers], *[(11, v) for v in inputs], *[(12, v) for v in outputs])
    return message((1, version), (8, message((1, ""), (2, opset))), (7, graph))


def onnxes():
    ints = lambda name, values: message((1, name), *[(8, n) for n in values], (20, 7))
    ramp = lambda n: [0.1 * i - 0.3 for i in range(n)]
    linear = [onnx_node("MatMul", ["x", "w"], ["p"]), onnx_node("Add", ["p", "b"], ["s"]), onnx_node("Relu", ["s"], ["y"])]
    yield onnx_model(linear, [onnx_tensor("w", [2, 3], ramp(6)), onnx_tensor("b", [3], ramp(3))], [onnx_value("x", "n", 2)], [onnx_value("y", "n", 3)])
    norm = [onnx_tensor(name, [2], [1.0, 0.5]) for name in ["scale", "bias", "mean", "var"]]
    pads = [ints("kernel_shape", [1, 1]), ints("pads", [0, 0, 0, 0]), message((1, "group"), (3, 1), (20, 2))]
    conv = [onnx_node("Conv", ["x", "w"], ["c"], *pads), onnx_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["y"])]
    yield onnx_model(conv, [onnx_tensor("w", [2, 1, 1, 1], ramp(2)), *norm], [onnx_value("x", 1, 1, 4, 4)], [onnx_value("y", 1, 2, 4, 4)])
    beside = [(14, 1), *[(13, message((1, key), (2, value))) for key, value in [("location", "w"), ("offset", "0"), ("length", "32")]]]
    turn = [message((1, "transB"), (3, 1), (20, 2)), message((1, "alpha"), (2, 1.0), (20, 1))]
    gemm = [onnx_node("Identity", ["w"], ["same"]), onnx_node("Gemm", ["x", "same"], ["y"], *turn)]
    yield onnx_model(gemm, [onnx_tensor("w", [4, 2], fields=beside)], [onnx_value("x", "n", 2)], [onnx_value("y", "n", 4)], version=3)
    constant = message((1, "value"), (5, onnx_tensor("", [2, 2], ramp(4))), (20, 4))
    branch = lambda name, source: message((1, name), (6, message((1, onnx_node("Identity", [source], ["i"])), (12, onnx_value("i", 2)))), (20, 5))
    nodes = [onnx_node("Constant", [], ["t"], constant), onnx_node("Gather", ["t", "x"], ["e"]), onnx_node("Transpose", ["e"], ["r"], ints("perm", [1, 0])), onnx_node("If", ["c"], ["y"], branch("then_branch", "r"), branch("else_branch", "e"))]
    yield onnx_model(nodes, [onnx_tensor("x", [1], [1], kind=7)], [onnx_value("c")], [onnx_value("y", 2)], opset=13)


def npy(descr, shape, data, version=1):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + data


def npzs():
    floats = npy("<f4", (2, 2), struct.pack("<4f", 0, 1, 2, 3))
    yield floats
    yield npy("<i8", (2, 1), struct.pack("<2q", 3, -7))
    yield npy(">f8", (1, 2), struct.pack(">2d", 1.5, -2), version=2)
    yield npy("|u1", (2, 2), bytes(4), version=3)
    for method in [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]:
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w", method) as file:
            file.writestr("x.npy", floats)
            file.writestr("labels.npy", npy("<i8", (2,), struct.pack("<2q", 1, 0)))
        yield whole.getvalue()


def saved():
    tokens = [0, 1, 2, 1, 0, 2, 2, 1, 0, 1]
    rows = [(0.5**14, -4.0, [32768, 65535, 0]), (0.0, -1.0986123, [0] * 3), (0.5**13, -8.0, [8192, 16384, 65535]), (2.441406e-4, -16.0, [0, 65535, 3])]
    packed = b"".join(struct.pack("<ff4H", scale, least, *codes, 0) for scale, least, codes in rows)
    yield b"_logits_" + struct.pack("<13i", 5, 3, 2, *tokens) + packed
    yield b"_logits_" + struct.pack("<6i", 3, 1, 1, 0, 0, 0) + struct.pack("<ffHH", 0, 0, 0, 0)


def configs():
    folder = os.path.join(ROOT, "tests/architectures")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name)) as file:
            yield json.dumps(json.load(file)["config"], separators=(",", ":")).encode()
    sizes = [("embedding_length", 8), ("attention.head_count", 2), ("context_length", 64), ("block_count", 1), ("feed_forward_length", 16)]
    for architecture in ["llama", "qwen3moe", "gemma3", "phi3"]:
        keys = [("general.architecture", 8, architecture), *[(f"{architecture}.{key}", 4, value) for key, value in sizes]]
        keys += [(f"{architecture}.attention.layer_norm_rms_epsilon", 6, 1e-5), (f"{architecture}.rope.freq_base", 6, 1e4)]
        yield gguf(keys, [("token_embd.weight", [2, 4], 0, 0)])


def templates():
    yield "{{ bos_token }}{% for message in messages %}{%- if loop.first and message['role'] != 'system' -%}\n<|im_start|>system\nYou help.<|im_end|>\n{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + (message.content or '').strip() + '<|im_end|>' + '\\n' }}{% endfor %}"
    yield "{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}{%- set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index0 %}{% if m.tool_calls is defined %}{% for call in m.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}{{ ns.n }}"
    yield "{% macro show(x, depth=0) %}{% for k, v in x.items() %}{{ k ~ ': ' ~ v | string | upper | trim }}{% endfor %}{% endmacro %}{{ show(messages[0]) }}{% if messages[1].role not in ['user', 'tool'] %}{{ raise_exception('roles') }}{% endif %}{% generation %}{{ messages | map(attribute='role') | join(',') }}{% endgeneration %}"
    yield "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ messages[i].content.split(' ')[0] | default('none', true) }}{{ '%s' | format(i) }}{{ i // 2 ** 2 % 3 }}{% endfor %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ {'a': [1, 2]}['a'] | reverse | first }}"


TARGETS = {
    "gguf": ggufs, "safetensors": safetensors_files, "pickle": pickles, "tokenizer_model": sentencepieces, "tokenizer_json": tokenizers, "tekken": tekkens,
    "imatrix": imatrices, "onnx": onnxes, "npz": npzs, "saved_logits": saved, "config": configs, "template": templates,
}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for target, seeds in TARGETS.items():
        folder = os.path.join(sys.argv[1], target)
        os.makedirs(folder, exist_ok=True)
        for i, seed in enumerate(seeds()):
            with open(os.path.join(folder, f"seed-{i}"), "wb") as file:
                file.write(seed.encode() if isinstance(seed, str) else seed)
