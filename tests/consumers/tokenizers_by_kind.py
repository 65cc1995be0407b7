#!/usr/bin/env python3
"""Trains one small tokenizer of each kind and says which tokens it makes of 500 generated strings.

    .consumers/python/bin/python tests/consumers/tokenizers_by_kind.py FOLDER

Needs scripts/setup-consumers.sh. FOLDER/NAME/tokenizer.json may already be there for kinds of byte-level BPE: with a
pre-tokenizer, a normalizer and an empty BPE model, which is trained here. Added are the kinds of SentencePiece, one of
them real (Mistral's). Everything is seeded; the text is eval/calibration.txt and words of many scripts.

Each FOLDER/NAME becomes a tokenizer as a checkpoint has it, and FOLDER/expected.json holds

    texts    the 500 strings
    tokens   NAME -> per string, the ids that the original library makes of it, without BOS and EOS: tokenizers for
             tokenizer.json, sentencepiece for a lone tokenizer.model
    sizes    NAME -> how many tokens there are
"""
import json
import random
import re
import sys
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
STRINGS = 500
SEED = 20
BYTE_LEVEL_SIZE = 1200
SPM_SIZE = 1200

CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|user|>"]
USER_DEFINED = ["<tool>", "[CALL]"]

SCRIPTS = """
the quick brown fox jumps over the lazy dog while HTTPServer parses camelCase and snake_case names
naïve café Äpfel Ünïcödé Łódź straße Žluťoučký kůň İstanbul ħobż œuvre ǅungla ªº
Съешь ещё этих мягких французских булок да выпей чаю Ђорђе Їжак
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία Ἀθῆναι
我想在你呢这是中文文本数据處理繁體
こんにちは世界カタカナひらがな東京へ行きます
안녕하세요세계한국어처리
مرحبا بالعالم كيف حالك اليوم پنجره
שלום עולם מה שלומך היום
हिन्दी में लिखा हुआ वाक्य क्षत्रिय
বাংলা ভাষায় লেখা தமிழ் மொழி తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ සිංහල
กำลังเรียนภาษาไทย ພາສາລາວ កាន់តែពិសេសអាច မြန်မာဘာသာ བོད་ཡིག
ქართული ენა Հայերեն լեզու አማርኛ ቋንቋ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ
Tiếng Việt Cửa sổ được mở
""".split("\n")
EMOJI = ["🚀", "😶\u200d🌫\ufe0f", "👩\u200d👩\u200d👧", "✅", "🦙🦙", "🇩🇪", "❤️", "👍🏽", "🏴\U000e0067\U000e0062\U000e007f"]
SPACES = [" ", " ", " ", "", "  ", "   ", "    ", "        ", " " * 17, "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ",
          "\r\n", "\r\n\r\n", "\u00a0", "\u3000", " \t ", "\u2003", "\u2028", "\u0085", "\x0b"]
NUMBERS = ["0", "7", "42", "123", "1234", "3.14159", "1,000,000", "0x1F", "2nd", "1e-5", "2024-02-29", "+1 (555) 010-9999",
           "٣٤٥", "½", "Ⅷ", "x²", "１２３", "१२३"]
CODE = ["fn main() { println!(\"{}\", x[i] + 1); } // 100%\n", "def f(x):\n    return {'a': x**2}\n", "if (a && b || !c) {\n\t++i;\n}",
        "SELECT * FROM t WHERE id=42;", "<div class=\"a b\">&nbsp;</div>", "https://example.org/a_b-c?d=e&f=%20#g", "a->b::c<T>()",
        "\\frac{1}{2}", "#include <stdio.h>\n", "x := []int{1,2,3}", "/* c */", "@decorator", "$HOME/.local", "me@example.org"]
MARKS = ["!", "...", "?!", "--", "——", "''", "\"quoted\"", "(a)", "[b]", "{c}", "``", "……", "。", "،", "¿", "–", "=====", "~~~",
         "I'll", "we've", "HE'D", "it'S", "don't", "y'all", "'tis", "O'Neil's", "\u2019s", "▁", "<0x0A>", "<s>", "</s>", "<unk>",
         "[PAD5]", "<|end_of_text", "\ufffd", "\ufeff", "\x00", "\x7f", "e\u0301"]


def strings(random):
    """500 strings of everything, from single pieces to long mixtures."""
    words = [line.split() for line in SCRIPTS if line]
    prose = [line for line in (ROOT / "eval/heldout.txt").read_text().splitlines() if line]
    special = CONTROL + USER_DEFINED

    def piece():
        kind = random.randrange(12)
        if kind < 4:
            line = random.choice(words)
            start = random.randrange(len(line))
            return random.choice([" ", " ", ""]).join(line[start:start + random.randint(1, 5)])
        if kind == 4:
            line = random.choice(prose)
            start = random.randrange(len(line))
            return line[start:start + random.randint(1, 60)]
        if kind == 5:
            return random.choice(EMOJI)
        if kind == 6:
            return random.choice(NUMBERS) if random.random() < 0.7 else str(random.randrange(10 ** random.randint(1, 9)))
        if kind == 7:
            return random.choice(CODE)
        if kind == 8:
            return random.choice(MARKS)
        if kind == 9:
            return random.choice(special)
        if kind == 10:
            return random.choice(SPACES) * random.randint(1, 3)
        first, last = random.choice([(0x21, 0x7f), (0xa1, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xe00),
                                     (0x1e00, 0x2000), (0x2010, 0x2070), (0x2190, 0x2400), (0x3041, 0x3100), (0x4e00, 0x9fa6),
                                     (0xac00, 0xd7a4), (0x10400, 0x10450), (0x1f300, 0x1f650), (0x20000, 0x20100)])
        return "".join(chr(random.randrange(first, last)) for _ in range(random.randint(1, 4)))

    result = ["", " ", "  ", "\n", "a", " a", "a ", "  a  "]
    while len(result) < STRINGS:
        parts = []
        for _ in range(random.choice([1, 1, 2, 3, 5, 8, 12])):
            parts += [piece(), random.choice(SPACES)]
        result.append("".join(parts[:-1]))
    return result


def corpus():
    """Lines to train on. The words of other scripts are rare, as they are for real tokenizers."""
    prose = (ROOT / "eval/calibration.txt").read_text().split("\n")
    return prose + [line for line in SCRIPTS if line] * 3 + CODE * 3 + [" ".join(NUMBERS)] + ["a" + " " * n + "b" for n in range(2, 20)]


def byte_level(folder):
    """Trains the empty tokenizer in a folder."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    trainer = trainers.BpeTrainer(vocab_size=BYTE_LEVEL_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=CONTROL, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])
    tokenizer.save(path)
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(bos_token=CONTROL[0], eos_token=CONTROL[1])))
    return tokenizer


def sentencepiece_model(folder, algorithm, prefix, user_defined, **changes):
    """Trains FOLDER/tokenizer.model and returns it."""
    folder.mkdir()
    options = dict(
        model_type=algorithm, vocab_size=SPM_SIZE, hard_vocab_limit=False, character_coverage=0.999, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        allow_whitespace_only_pieces=True, user_defined_symbols=user_defined, num_threads=1, minloglevel=2)
    lines = iter(line for line in corpus() if line.strip())
    model = str(folder / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_prefix=model, **options | changes)
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def added(first):
    """The added tokens as tokenizer_config.json lists them, with ids from `first` on."""
    texts = [(text, True) for text in CONTROL] + [(text, False) for text in USER_DEFINED]
    return {str(first + i): dict(content=text, special=special, lstrip=False, rstrip=False, normalized=False, single_word=False)
            for i, (text, special) in enumerate(texts)}


def mistral(folder):
    """The real tokenizer.model of Mistral 7B v0.3, out of the package mistral-common."""
    folder.mkdir()
    packages = Path(sentencepiece.__file__).parents[1]
    copy = folder / "tokenizer.model"
    copy.write_bytes((packages / "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3").read_bytes())
    return sentencepiece.SentencePieceProcessor(model_file=str(copy))


def lone_model(folder, model):
    """A tokenizer.model with added tokens beside it, used as Hugging Face's slow tokenizers do."""
    decoder = added(model.get_piece_size())
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(added_tokens_decoder=decoder, bos_token="<s>", eos_token="</s>")))
    ids = {token["content"]: int(id) for id, token in decoder.items()} | {text: model.piece_to_id(text) for text in ["<s>", "</s>", "<unk>"]}
    cut = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")

    def encode(text):
        parts = (part for part in cut.split(text) if part)
        return [id for part in parts for id in ([ids[part]] if part in ids else model.encode(part))]

    return encode, model.get_piece_size() + len(decoder)


def converted(folder, model, normalizer, pre_tokenizer):
    """The tokenizer.json that transformers makes of a SentencePiece model: every way to make a piece is a merge."""
    folder.mkdir(exist_ok=True)
    size = model.get_piece_size()
    vocab = {model.id_to_piece(id): id for id in range(size)}
    merges = []
    for piece, id in vocab.items():
        if model.is_control(id) or model.is_unknown(id) or model.is_byte(id):
            continue
        halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        halves = sorted((vocab[left], vocab[right], left, right) for left, right in halves if left in vocab and right in vocab)
        merges += [(model.get_score(id), len(left), len(right), left, right) for _, _, left, right in halves]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    pairs = [(left, right) for _, _, _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ["<unk>", "<s>", "</s>"] + CONTROL])
    own = [model.id_to_piece(id) for id in range(size) if model.get_score(id) == 0 and not (model.is_control(id) or model.is_unknown(id) or model.is_byte(id))]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in own if "▁" not in text] + [AddedToken(text, normalized=False) for text in USER_DEFINED])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def trained(folder):
    """BPE with byte fallback that was never SentencePiece: each token has one merge."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=SPM_SIZE, special_tokens=tokens, limit_alphabet=150, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    # The byte tokens are tokens of the model alone, not matched in text.
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    path.write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])
    tokenizer.save(str(path))
    return tokenizer


def gemma4(folder):
    """BPE with byte fallback on whole texts, as Gemma 4 has it: the ends of lines are tokens, and no token has more besides."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    lines = pre_tokenizers.Split(Regex("\n+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never", split=True)])
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=SPM_SIZE, special_tokens=tokens, limit_alphabet=150, show_progress=False)
    tokenizer.train_from_iterator(corpus() + ["\n" * n for n in range(1, 9)] * 40, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    path.write_text(json.dumps(content))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL + ["<|tool_call>", "<tool_call|>"]])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])
    tokenizer.save(str(path))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<bos>", eos_token="<eos>")))
    return tokenizer


def unigram(folder, model):
    """The tokenizer.json that transformers makes of a Unigram model, alone."""
    folder.mkdir()
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, byte_fallback=False))
    table = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tokenizer.normalizer = normalizers.Sequence([table, normalizers.Strip(False, True), normalizers.Replace(Regex(" {2,}"), "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ["<unk>", "<s>", "</s>"] + CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in USER_DEFINED])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return tokenizer


def main(folder):
    texts = strings(random.Random(SEED))
    tokens, sizes = {}, {}

    def note(name, tokenizer):
        tokens[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        sizes[name] = max(tokenizer.get_vocab().values()) + 1

    for path in sorted(folder.glob("*/tokenizer.json")):
        note(path.parent.name, byte_level(path.parent))

    runs = ["\n", "\n\n", "\n\n\n", "\t"] + ["▁" * n for n in range(2, 9)]
    lone = {
        "spm_bpe": lambda folder: sentencepiece_model(folder, "bpe", True, []),
        "spm_unigram": lambda folder: sentencepiece_model(folder, "unigram", True, []),
        "spm_gemma": lambda folder: sentencepiece_model(folder, "bpe", False, runs),
        "spm_mistral": mistral,
    }
    for name, make in lone.items():
        encode, sizes[name] = lone_model(folder / name, make(folder / name))
        tokens[name] = [encode(text) for text in texts]

    llama = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm_bpe/tokenizer.model"))
    gemma = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm_gemma/tokenizer.model"))
    replace = normalizers.Replace(" ", "▁")
    prefixed = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    note("json_llama", converted(folder / "json_llama", llama, prefixed, None))
    note("json_metaspace", converted(folder / "json_metaspace", llama, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)))
    note("json_gemma", converted(folder / "json_gemma", gemma, replace, split))
    note("json_trained", trained(folder / "json_trained"))
    for name in ["gemma4", "sarvam-moe"]:
        note(name, gemma4(folder / name))
    changes = dict(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, byte_fallback=False)
    likely = sentencepiece_model(folder / "nfkc", "unigram", True, [], **changes)
    note("json_unigram", unigram(folder / "json_unigram", likely))
    (folder / "expected.json").write_text(json.dumps(dict(texts=texts, tokens=tokens, sizes=sizes)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tokenizers_by_kind.py FOLDER")
    main(Path(sys.argv[1]))
