#!/usr/bin/env python3
"""Runs Ostro and Hugging Face transformers on fresh random prompts and compares them, in float32:
prompt logits within 2e-4, greedy tokens equal up to the first tie.

    tools/compare_transformers.py build/cpu/bin/ostro [--seed N] [checkpoint folders]

Default folders: models/tiny-mixtral and the cases of tests/golden that transformers loads itself.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
NEW_TOKENS = 32
TIE_NATS = 1e-4
LOGIT_TOLERANCE = 2e-4


def run(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode}: {' '.join(map(str, command))}\n{result.stderr}")


def prompts_for(config, rng):
    """Three lengths, all inside the context (and a dynamic RoPE's original one) with their output."""
    room = min(config["max_position_embeddings"] - NEW_TOKENS, 300)
    lengths = sorted({max(1, room // 60), max(1, room // 6), max(1, room)}) if room > 0 else []
    return [[1] + [int(t) for t in rng.integers(3, config["vocab_size"], n - 1)] for n in lengths]


@torch.no_grad()
def first_difference(model, prompt, tokens):
    """Nats between transformers' choice and ours at the first step where they differ, or None. One
    pass over the whole answer serves: transformers is fed our tokens."""
    logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1:].double()
    log_probs = torch.log_softmax(logits, -1)
    for step, token in enumerate(tokens):
        best = int(log_probs[step].argmax())
        if best != token:
            return step, float(log_probs[step, best] - log_probs[step, token])
    return None


def compare(ostro, folder, rng, work):
    config = json.loads((folder / "config.json").read_text())
    prompts = prompts_for(config, rng)
    if not prompts:
        return f"{folder.name}: skipped, its context has no room for {NEW_TOKENS} tokens", True
    engine = work / folder.name
    run(ostro, "build", "--model_dir", folder, "--output_dir", engine, "--dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    file, out = work / "prompts.csv", work / "tokens.csv"
    file.write_text("".join(",".join(map(str, p)) + "\n" for p in prompts))
    common = ["--engine_dir", engine, "--device", "cpu", "--end_id", "-1"]
    run(ostro, "run", *common, "--input_file", file, "--max_output_len", NEW_TOKENS,
        "--output_csv", out)
    rows = [[int(t) for t in line.split(",") if t.strip()] for line in out.read_text().splitlines()]
    problems, ties = [], 0
    for prompt, tokens in zip(prompts, rows, strict=True):
        if len(tokens) != NEW_TOKENS:
            problems.append(f"{len(tokens)} tokens instead of {NEW_TOKENS}")
            continue
        difference = first_difference(model, prompt, tokens)
        if difference and difference[1] > TIE_NATS:
            problems.append("prompt of {}: token {} differs by {:.2e} nats".format(
                len(prompt), *difference))
        ties += bool(difference)
    file.write_text(",".join(map(str, prompts[-1])) + "\n")
    run(ostro, "run", *common, "--input_file", file, "--max_output_len", 1,
        "--output_context_logits_npy", work / "logits.npy")
    with torch.no_grad():
        want = model(torch.tensor([prompts[-1]])).logits[0].numpy()
    error = np.abs(np.load(work / "logits.npy").reshape(want.shape) - want).max()
    if not error <= LOGIT_TOLERANCE:
        problems.append(f"logits differ by {error:.2e}")
    text = "; ".join(problems) or f"equal tokens ({ties} ties), logits within {error:.1e}"
    return f"{folder.name:28} {text}", not problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("ostro")
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    folders = args.folders or [ROOT / "models" / "tiny-mixtral"] + sorted(
        p.parent for p in (ROOT / "tests" / "golden").glob("*/config.json")
        if any(p.parent.glob("*.safetensors")))
    rng, good = np.random.default_rng(args.seed), True
    with tempfile.TemporaryDirectory() as work:
        for folder in folders:
            text, passed = compare(Path(args.ostro).resolve(), folder, rng, Path(work))
            print(text if passed else f"FAILED {text}", flush=True)
            good = good and passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
