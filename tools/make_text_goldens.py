#!/usr/bin/env python3
"""Makes tests/text/data/: two small tokenizer.json files and what Hugging Face's tokenizers make of
awkward texts with them and with variants of them (a variant is a JSON merge patch of its base).

    pip install tokenizers==0.22.2 && tools/make_text_goldens.py [--train]

Training breaks ties by chance: without --train the tokenizers that are there stay, and the same
goldens come out again.

`ids` are without special tokens parsed (encode_special_tokens), `special_ids` with them parsed, both
without bos; `bos` is the id that add_special_tokens puts before. Decodings of byte-fallback
tokenizers are judged byte by byte, as by SentencePiece; where all bytes are good this script checks
that Hugging Face says the same.
"""
import codecs
import copy
import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/text/data"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "", " ", "  ", "a", " a", "Hello world", " leading", "trailing ", "two  spaces", "   three   x",
    "\t", "tab\tand\nnewline\n\n", "\r\nCRLF\r\n", "a\n\n\n  b", " \n \t \r ", " " * 37 + "x" + " " * 70,
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d", "\u6570\u636e\u5e93\u7cfb\u7edf", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    "\U0001f680\U0001f525", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family", "\U0001f44d\U0001f3fd", "flags \U0001f1eb\U0001f1f7",
    "a\u0301 e\u0301\u0302 combining", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 and \u05e2\u05d1\u05e8\u05d9\u05ea", "\u202eright-to-left\u202c", "\u200bzero\u200cwidth\u200d\ufeff",
    "NUL\0byte", "\x01\x02\x1b[31m\x7f", "\u0085next\u2028line\u2029par", "\u00a0nbsp\u3000ideographic\u180emvs",
    "0123456789 3.14 1,000,000 \u0663\u0664\u0665 \u00bd \u2167", "x=1;y={2:[3]} // code", "for (int i = 0; i < n; ++i) {\n    a[i] += b;\n}",
    "; a ;b ; c;  d", "don't I'LL we've THEY'D 'S 's", "camelCase HTTPServer XMLHttpRequest2",
    "<s>not special</s>", "<s> a </s> b", "[INST] hi [/INST] yes</s>", "<s>", "</s></s>", "<<s>>", "<s", "<unk> <0x41>",
    "<|begin_of_text|>hi<|eot_id|> there", "<|eot_id|>", "x<|eot_id|><|eot_id|>y",
    "say zap now", "zapper zap", "zap", "a zap, b", "the  LEFT  right", "LEFTLEFT", " LEFT RIGHT  x", "a\u00a0RIGHT\u3000\n LEFT", "NORM norm aNORM NORM", "_zap_ \u00e9zap zap\u0301",
    "\u2581already\u2581marked", "\ufffd replacement", "\U0010ffff\ue000", "\ufb01 \u0130 \u1e9e \u00df \u017f",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940", "a" * 100, "ab" * 40, "\u00e9" * 20, "!?...---***", "https://example.org/a?b=c&d=%20#e",
]

INVALID = [b"\xff", b"a\xc3", b"\xe2\x82", b"\xe2\x82x", b"\xf0\x9f\x98", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xc0\xaf", b"\xed\xa0\x80",
           b"\xe0\x80\x80", b"\xf4\x90\x80\x80", b"\x80\x80abc\xfe", b"ok \xc3\xa9 \xc3( \xe6\x97\xa5", b"\xf5\x80\x80\x80"]

codecs.register_error("per_byte", lambda e: ("\ufffd" * (e.end - e.start), e.end))


def added(i, content, special=True, **flags):
    token = {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": special}
    return token | flags


def template(bos, i):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}}}


def corpus():
    with open(ROOT / "models/tiny-mixtral/validation.jsonl", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f][:60]
    return texts + TEXTS * 3


def train(pre_tokenizer, size, alphabet, limit):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, limit_alphabet=limit, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def mixtral_like():
    learned, merges = train(pre_tokenizers.Metaspace(), 900, [], 110)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokens += learned + ["\u2581\u2581", "\u2581\u2581\u2581\u2581", ";\u2581"]
    merges += [["\u2581", "\u2581"], ["\u2581\u2581", "\u2581\u2581"], [";", "\u2581"]]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"),
                         added(len(vocab), "[INST]"), added(len(vocab) + 1, "[/INST]")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": template("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                  "ignore_merges": False, "vocab": vocab, "merges": [" ".join(m) for m in merges]},
    }


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False} | options


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}, byte_level()]}


def llama3_like():
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    learned, merges = train(pre, 900, pre_tokenizers.ByteLevel.alphabet(), 256)
    vocab = {token: i for i, token in enumerate(learned)}
    n = len(vocab)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(n, "<|begin_of_text|>"), added(n + 1, "<|end_of_text|>"), added(n + 2, "<|eot_id|>")],
        "normalizer": None, "pre_tokenizer": split({"Regex": LLAMA3}),
        "post_processor": {"type": "Sequence", "processors": [byte_level(), template("<|begin_of_text|>", n)]},
        "decoder": byte_level(),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": True, "vocab": vocab, "merges": merges},
    }


def variants(bases):
    mixtral, llama = bases["mixtral_like.json"], bases["llama3_like.json"]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    def extra(document):
        vocab = document["model"]["vocab"]
        first = len(vocab) + sum(token["content"] not in vocab for token in document["added_tokens"])
        tokens = [("zap", {"special": False, "single_word": True}), ("LEFT", {"special": False, "lstrip": True}),
                  ("RIGHT", {"special": False, "rstrip": True}), ("NORM", {"special": False, "normalized": True}),
                  ("two  spaces", {"special": False, "normalized": True}), ("code", {"lstrip": True, "rstrip": True})]
        absent = [content for content, _ in tokens if content not in vocab]
        return document["added_tokens"] + [
            added(vocab.get(content, first + absent.index(content) if content in absent else None), content, **flags)
            for content, flags in tokens]

    yield "mixtral", "mixtral_like.json", {}
    yield "mixtral, Metaspace first", "mixtral_like.json", {"normalizer": None, "pre_tokenizer": metaspace}
    yield "mixtral, Metaspace always", "mixtral_like.json", {
        "normalizer": None, "pre_tokenizer": metaspace | {"prepend_scheme": "always", "split": True},
        "decoder": metaspace | {"type": "Metaspace", "prepend_scheme": "always", "decoders": None}}
    yield "mixtral, Metaspace never", "mixtral_like.json", {
        "normalizer": None, "pre_tokenizer": metaspace | {"prepend_scheme": "never", "add_prefix_space": False}}
    yield "mixtral, unknown fused", "mixtral_like.json", {"model": {"byte_fallback": False}}
    yield "mixtral, unknown apart", "mixtral_like.json", {"model": {"byte_fallback": False, "fuse_unk": False}}
    yield "mixtral, unknown dropped", "mixtral_like.json", {"model": {"byte_fallback": False, "unk_token": None}}
    yield "mixtral, added tokens", "mixtral_like.json", {"added_tokens": extra(mixtral)}
    yield "llama3", "llama3_like.json", {}
    yield "llama3, merges heeded", "llama3_like.json", {"model": {"ignore_merges": False}}
    yield "llama3, added tokens", "llama3_like.json", {"added_tokens": extra(llama)}
    yield "GPT-2", "llama3_like.json", {"pre_tokenizer": byte_level(use_regex=True, pretokenizers=None)}
    yield "GPT-2 with prefix", "llama3_like.json", {"pre_tokenizer": byte_level(use_regex=True, add_prefix_space=True, pretokenizers=None)}
    yield "Tekken", "llama3_like.json", {"pre_tokenizer": split({"Regex": TEKKEN})}
    for behavior in ["Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        yield f"{behavior} at spaces", "llama3_like.json", {"pre_tokenizer": split({"String": " "}, behavior)}
    yield "words inverted", "llama3_like.json", {"pre_tokenizer": split({"Regex": r"\w+|[^\w\s]"}, "Removed", True)}
    yield "empty matches", "llama3_like.json", {"pre_tokenizer": split({"Regex": r"(?=[A-Z\u00e9])|\s*$"}, "Isolated")}


def merge_patch(target, patch):
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge_patch(target.get(key), value)
    return target


def load(document):
    document = copy.deepcopy(document)
    for key in ["normalizer", "pre_tokenizer"]:
        document.setdefault(key, None)
    return Tokenizer.from_str(json.dumps(document))


def reference_decode(tokenizer, document, ids, skip_special):
    """Hugging Face's decoding, but with byte-fallback tokens judged one by one."""
    theirs = tokenizer.decode(ids, skip_special_tokens=skip_special)
    if document["decoder"]["type"] != "Sequence":
        return theirs
    special = {t["id"] for t in document["added_tokens"] if t["special"]}
    out = b""
    for i in ids:
        if skip_special and i in special:
            continue
        token = tokenizer.id_to_token(i).replace("\u2581", " ")
        is_byte = len(token) == 6 and token.startswith("<0x")
        out += bytes([int(token[3:5], 16)]) if is_byte else token.encode()
    ours = out.decode(errors="per_byte")
    ours = ours[1:] if ours.startswith(" ") else ours
    assert ours == theirs or "\ufffd" in ours, (ours, theirs)
    return ours


def golden(name, base, patch, bases, rng):
    document = merge_patch(bases[base], patch)
    tokenizer = load(document)
    cases, decodes = [], []
    for text in TEXTS:
        tokenizer.encode_special_tokens = True
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        with_bos = tokenizer.encode(text).ids
        assert with_bos[1:] == ids
        tokenizer.encode_special_tokens = False
        special_ids = tokenizer.encode(text, add_special_tokens=False).ids
        case = {"text": text, "ids": ids}
        if special_ids != ids:
            case["special_ids"] = special_ids
        decoded = reference_decode(tokenizer, document, ids, True)
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    for _ in range(25 if not patch else 6):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(1, 12))]
        if rng.random() < 0.5:  # bytes are where decoding is hard
            ids = [rng.choice([i, rng.randrange(0, 300)]) for i in ids]
        decodes.append({"ids": ids, "text": reference_decode(tokenizer, document, ids, True),
                        "with_special": reference_decode(tokenizer, document, ids, False)})
    return {"name": name, "base": base, "patch": patch, "bos": with_bos[0], "cases": cases, "decodes": decodes}


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    bases = {}
    for name, make in {"mixtral_like.json": mixtral_like, "llama3_like.json": llama3_like}.items():
        path = DATA / name
        if "--train" in sys.argv or not path.exists():
            text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
            path.write_text(text + "\n", encoding="utf-8")
        bases[name] = json.loads(path.read_text(encoding="utf-8"))
    rng = random.Random(1)
    tokenizers = [golden(*variant, bases, rng) for variant in variants(bases)]
    invalid = [{"hex": raw.hex(), "text": raw.decode(errors="replace")} for raw in INVALID]
    lines = ",\n".join(json.dumps(t, separators=(",", ":")) for t in tokenizers)
    text = '{"invalid_utf8":' + json.dumps(invalid) + ',\n"tokenizers":[\n' + lines + "\n]}\n"
    (DATA / "goldens.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
