#!/usr/bin/env python3
"""Compares Ostro's tokenizers with the real ones of Mistral, which PyPI's mistral-common brings.

    pip install mistral-common==1.13.1 && tests/text/compare_mistral_common.py TOKENIZE_TOOL

v1 (Mixtral 8x7B), v2 and v3 (Mixtral 8x22B) are SentencePiece models: read as they are, and again
after conversion to tokenizer.json. Tekken is converted to tokenizer.json. Exit status 77: skipped.
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

try:
    import mistral_common
    import sentencepiece
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
except ImportError as error:
    print(f"skipped: {error}; pip install mistral-common==1.13.1")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = pathlib.Path(mistral_common.__file__).parent / "data"
RANDOM_TEXTS = 300


def texts():
    goldens = json.loads((ROOT / "tests/text/data/goldens.json").read_text(encoding="utf-8"))
    found = [case["text"] for case in goldens["tokenizers"][0]["cases"]]
    with open(ROOT / "models/tiny-mixtral/validation.jsonl", encoding="utf-8") as f:
        found += [json.loads(line)["text"] for line in f][:40]
    rng = random.Random(5)
    ranges = [(32, 127), (32, 127), (9, 14), (0xA0, 0x250), (0x300, 0x370), (0x400, 0x700), (0x900, 0xE80),
              (0x2000, 0x2100), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A0), (0x1F300, 0x1F700)]
    for _ in range(RANDOM_TEXTS):
        chars = []
        while rng.random() < 0.97:
            low, high = rng.choice(ranges)
            chars += [chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6))]
        found.append("".join(chars))
    return found


def byte_level_characters():
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def ranked_merges(ranks):
    """All ways to join two tokens to a third, by the third's rank: what BPE by rank does."""
    merges = []
    for token, rank in ranks.items():
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        splits = [s for s in splits if s[0] in ranks and s[1] in ranks]
        merges += [(rank, s) for s in sorted(splits, key=lambda s: (ranks[s[0]], ranks[s[1]]))]
    merges.sort(key=lambda m: m[0])
    return [m[1] for m in merges]


def document(model, added, **parts):
    added = [{"id": i, "content": content, "special": True} for i, content in added]
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "model": {"type": "BPE"} | model} | parts


def json_of_sentencepiece(model):
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    normal = {p: -model.get_score(i) for i, p in enumerate(pieces)
              if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))}
    special = [(i, p) for i, p in enumerate(pieces) if model.is_control(i) or model.is_unknown(i)]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return document(
        {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
         "vocab": {p: i for i, p in enumerate(pieces)}, "merges": [" ".join(m) for m in ranked_merges(normal)]},
        special,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]},
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"},
                                                  {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})


def json_of_tekken(path, tekken):
    source = json.loads(path.read_text(encoding="utf-8"))
    characters = byte_level_characters()
    first = tekken.num_special_tokens
    ranks = {"".join(characters[b] for b in tekken.id_to_byte_piece(i)): i - first
             for i in range(first, tekken.n_words)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": source["config"]["pattern"]}, "behavior": "Isolated"}
    return document(
        {"ignore_merges": True, "vocab": {t: r + first for t, r in ranks.items()},
         "merges": [list(m) for m in ranked_merges(ranks)]},
        [(i, tekken.id_to_piece(i)) for i in range(first)],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]}, decoder=byte_level)


def compare(tool, name, path, samples, encode):
    lines = "".join(json.dumps(text) + "\n" for text in samples)
    run = subprocess.run([tool, path], input=lines, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        print(f"{name}: {run.stderr.strip()}")
        return 1
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == len(samples)
    wrong = [(text, got) for text, got in zip(samples, results) if got != encode(text)]
    for text, got in wrong[:5]:
        print(f"{name}: {text!r}\n  ours   {got}\n  theirs {encode(text)}")
    print(f"{name}: {len(samples) - len(wrong)} of {len(samples)} texts equal")
    return len(wrong)


def main():
    tool, keep = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    samples = texts()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(keep or folder)

        def converted(name, content):
            path = folder / f"{name}.json"
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            return path

        for path in sorted(MODELS.glob("*.model.v[123]")):
            model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            wrong += compare(tool, path.name, path, samples, model.encode)
            as_json = converted(path.name, json_of_sentencepiece(model))
            wrong += compare(tool, path.name + " as JSON", as_json, samples, model.encode)
        for path in sorted(MODELS.glob("tekken_*.json"))[:1]:
            tekken = Tekkenizer.from_file(path)
            as_json = converted(path.stem, json_of_tekken(path, tekken))
            wrong += compare(tool, path.name + " as JSON", as_json, samples,
                             lambda text: tekken.encode(text, bos=False, eos=False))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
