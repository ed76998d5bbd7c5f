"""What make_goldens.py writes beside the cases: tests/golden/beams.json, beam searches, and
tests/golden/sampling.json, what transformers' logits processors leave of random logits."""
import json
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

SOURCE = Path(__file__).resolve().parent.parent
BEAMS = SOURCE / "tests" / "golden" / "beams.json"
SAMPLING = SOURCE / "tests" / "golden" / "sampling.json"
MADE_WITH = {"transformers": transformers.__version__, "torch": torch.__version__}

# Searches by one set of settings each. `end_id` is a token that some beams meet soon.
SEARCHES = [
    {"length_penalty": 2.0, "early_stopping": True},
    {"length_penalty": 0.5, "early_stopping": "never"},
    {"length_penalty": 1.0, "early_stopping": "never"},
    {"length_penalty": 0.0, "early_stopping": False},
    {"length_penalty": -1.0, "early_stopping": True},
]
MODELS = [
    {"checkpoint": "models/tiny-mixtral", "end_id": 7187, "new_tokens": 20, "num_beams": 4},
    {"checkpoint": "tests/golden/mixtral_5_experts_top3", "end_id": 2, "new_tokens": 24,
     "num_beams": 3},
    {"checkpoint": "tests/golden/mixtral_odd_heads", "end_id": 2, "new_tokens": 24, "num_beams": 5},
]
PROMPTS = 3           # of each search
MIN_SCORE_GAP = 1e-4  # between two beams, so that they cannot change places


@torch.no_grad()
def search(model, prompt, search):
    """Tokens of each beam, its end id included, and scores; the best first."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, num_beams=search["num_beams"], num_return_sequences=search["num_beams"],
        length_penalty=search["length_penalty"], early_stopping=search["early_stopping"],
        min_new_tokens=None, max_new_tokens=search["new_tokens"], eos_token_id=search["end_id"],
        pad_token_id=0, return_dict_in_generate=True, output_scores=True)
    beams = []
    for row in out.sequences[:, len(prompt):].tolist():
        ends = row.index(search["end_id"]) + 1 if search["end_id"] in row else len(row)
        beams.append(row[:ends])
    return beams, [float(s) for s in out.sequences_scores]


def steady_beams(model, exact, prompt, settings):
    """The record of a prompt, or None where rounding could change the beams: where float64 finds
    others, or two have nearly one score."""
    beams, scores = search(model, prompt, settings)
    again, exact_scores = search(exact, prompt, settings)
    gaps = [a - b for a, b in zip(exact_scores, exact_scores[1:])]
    if beams != again or min(gaps) < MIN_SCORE_GAP:
        return None
    return {"input_ids": prompt, "beams": beams, "scores": [round(s, 6) for s in scores]}


def load_twice(folder):
    return [AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
            for dtype in (torch.float32, torch.float64)]


def make_searches():
    generation = json.loads((SOURCE / "tests" / "golden" / "generation.json").read_text())
    for of_model in MODELS:
        folder = SOURCE / of_model["checkpoint"]
        model, exact = load_twice(folder)
        if (folder / "golden.json").exists():
            rng = np.random.default_rng(7)
            vocab = model.config.vocab_size
            prompts = [[1] + [int(t) for t in rng.integers(3, vocab, n)] for n in range(4, 16)]
        else:
            prompts = [c["input_ids"] for c in generation["cases"]]
        for settings in SEARCHES:
            settings = {**of_model, **settings}
            mixed, others = [], []  # prompts of which some beams end, but not all, are wanted first
            for prompt in prompts:
                if len(mixed) == PROMPTS:
                    break
                if record := steady_beams(model, exact, prompt, settings):
                    ended = sum(b[-1] == settings["end_id"] for b in record["beams"])
                    (mixed if 0 < ended < settings["num_beams"] else others).append(record)
            records = (mixed + others)[:PROMPTS]
            assert len(records) == PROMPTS, settings
            yield {**settings, "cases": records}


def random_rules(rng, vocab, tokens):
    """Settings by their names in transformers; each rule in about half of the cases."""
    rules = {}

    def maybe(name, make):
        if rng.random() < 0.5:
            rules[name] = make()

    def word():
        # One in two begins with what the tokens end with, so that it applies.
        before = tokens[len(tokens) - int(rng.integers(0, 3)):] if rng.random() < 0.5 else (
            [int(t) for t in rng.integers(0, vocab, rng.integers(0, 3))])
        return before + [int(rng.integers(0, vocab))]

    maybe("repetition_penalty", lambda: float(rng.choice([0.8, 1.1, 1.5, 3])))
    maybe("no_repeat_ngram_size", lambda: int(rng.integers(1, 5)))
    maybe("bad_words_ids", lambda: [word() for _ in range(3)])
    maybe("min_new_tokens", lambda: int(rng.integers(1, 6)))
    maybe("sequence_bias", lambda: [[[int(t)], float(rng.choice([-100, -0.75, 1.5, 5]))]
                                    for t in rng.choice(vocab, 3, replace=False)])
    maybe("temperature", lambda: float(rng.choice([0.25, 0.7, 1.3, 2])))
    maybe("top_k", lambda: int(rng.integers(2, vocab)))
    maybe("top_p", lambda: float(rng.choice([0.2, 0.5, 0.9, 0.99])))
    maybe("min_p", lambda: float(rng.choice([0.01, 0.05, 0.2])))
    return rules


def process(model, rules, logits, tokens, prompt_tokens, end_ids):
    """What all processors leave, in the order in which transformers itself applies them."""
    config = GenerationConfig(do_sample=True, eos_token_id=end_ids, pad_token_id=0,
                              **{"top_k": 0, "top_p": 1.0, "temperature": 1.0, **rules})
    model._prepare_special_tokens(config, True, device="cpu")
    processors = model._get_logits_processor(config, input_ids_seq_length=prompt_tokens, device="cpu",
                                             model_kwargs={})
    return processors(torch.tensor([tokens]), torch.tensor([logits]))[0]


def clear(scores):
    """Whether some tokens stay and no two of them are (nearly) equal: how equals are cut is nobody's
    promise."""
    finite = np.sort(scores[np.isfinite(scores)])
    return len(finite) > 0 and (len(finite) == 1 or np.diff(finite).min() > 1e-4)


def make_sampling(count=160, vocab=24):
    rng = np.random.default_rng(20261128)
    model = AutoModelForCausalLM.from_pretrained(SOURCE / "tests" / "golden" / "mixtral_odd_heads")
    end_ids = [2, 5]
    while count:
        logits = [float(x) for x in rng.choice(512, vocab, replace=False) / 64 - 4]
        # Few different tokens, so that n-grams repeat.
        tokens = [int(t) for t in rng.integers(0, 6, rng.integers(2, 14))]
        prompt_tokens = int(rng.integers(1, len(tokens)))
        rules = random_rules(rng, vocab, tokens)
        cut = {"top_k", "top_p", "min_p"}
        whole = process(model, {k: v for k, v in rules.items() if k not in cut}, logits, tokens,
                        prompt_tokens, end_ids).numpy()
        if not clear(whole):
            continue
        scores = process(model, rules, logits, tokens, prompt_tokens, end_ids)
        count -= 1
        yield {"logits": logits, "tokens": tokens, "prompt_tokens": prompt_tokens,
               "end_ids": end_ids, "rules": rules,
               "probabilities": [float(f"{p:.7g}") for p in torch.softmax(scores.double(), -1).tolist()]}


def write(path, key, records):
    text = json.dumps({"made_with": MADE_WITH, key: records})
    path.write_text(text.replace('{"logits"', '\n {"logits"').replace('{"checkpoint"', '\n {"checkpoint"')
                    .replace('{"input_ids"', '\n  {"input_ids"') + "\n")
    print(f"{path.name:36} {len(records)} {key}, {len(text) / 1024:.0f} KB")


def make():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(BEAMS, "searches", list(make_searches()))
        write(SAMPLING, "cases", list(make_sampling()))


def check():
    golden = json.loads(SAMPLING.read_text())["cases"]
    again = list(make_sampling(len(golden)))
    for got, want in zip(again, golden):
        assert {**got, "probabilities": 0} == {**want, "probabilities": 0}, want
        error = np.abs(np.subtract(got["probabilities"], want["probabilities"])).max()
        assert error < 1e-5, f"sampling: probabilities differ by {error}"
    print(f"{SAMPLING.name:36} {len(golden)} equal distributions")
    for s in json.loads(BEAMS.read_text())["searches"]:
        model = AutoModelForCausalLM.from_pretrained(SOURCE / s["checkpoint"], dtype=torch.float32,
                                                     attn_implementation="eager").eval()
        for case in s["cases"]:
            beams, scores = search(model, case["input_ids"], s)
            assert beams == case["beams"], f"{s['checkpoint']}: other beams"
            assert np.allclose(scores, case["scores"], rtol=5e-5, atol=0), f"{scores}, {case['scores']}"
    print(f"{BEAMS.name:36} equal beams")
