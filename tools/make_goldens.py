#!/usr/bin/env python3
"""Writes tests/golden/<case>: tiny checkpoints of every shape that Ostro reads, with what Hugging
Face transformers computes for them in float32; and beams.json and sampling.json beside them.

    tools/make_goldens.py                  write all cases (or those named; "decoding": the two files)
    tools/make_goldens.py --check          compute again from the committed files and compare

Needs torch, transformers and safetensors from PyPI. The weights come from numpy's seeded
generator, so that a case can be made again bit by bit; each one's seed is the first whose greedy
tokens are all clear of a tie and varied enough to tell programs apart.
"""
import argparse
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import golden_decoding
from golden_cases import CASES

ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden"
NEW_TOKENS = 24
MIN_GAP = 5e-3  # nats between the first and the second token of every greedy step
MIN_DISTINCT = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_weights(config, dtype, seed):
    """Random tensors by their Hugging Face names. Scales keep attention peaked, the router decided
    and the logits a few nats apart, so that a wrong position, head, norm or expert shows."""
    rng = np.random.default_rng(seed)
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    weights = {}

    def add(name, shape, gain):
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(gain / shape[-1] ** 0.5)
        weights[name] = torch.from_numpy(values).to(dtype)

    def add_norm(name):
        weights[name] = torch.from_numpy(rng.uniform(0.6, 1.4, hidden).astype(np.float32)).to(dtype)

    tied = config.get("tie_word_embeddings", False)
    # A tied output multiplies by the same rows: at full scale each token would predict itself.
    add("model.embed_tokens.weight", (vocab, hidden), (0.25 if tied else 1.0) * hidden**0.5)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        add_norm(p + "input_layernorm.weight")
        add(p + "self_attn.q_proj.weight", (heads * head_dim, hidden), 1.5)
        add(p + "self_attn.k_proj.weight", (kv_heads * head_dim, hidden), 1.5)
        add(p + "self_attn.v_proj.weight", (kv_heads * head_dim, hidden), 1.2)
        add(p + "self_attn.o_proj.weight", (hidden, heads * head_dim), 1.5)
        add_norm(p + "post_attention_layernorm.weight")
        if "num_local_experts" in config:
            add(p + "block_sparse_moe.gate.weight", (config["num_local_experts"], hidden), 1.5)
            for e in range(config["num_local_experts"]):
                q = f"{p}block_sparse_moe.experts.{e}."
                add(q + "w1.weight", (inter, hidden), 1.3)
                add(q + "w2.weight", (hidden, inter), 2.0)
                add(q + "w3.weight", (inter, hidden), 1.3)
        else:
            add(p + "mlp.gate_proj.weight", (inter, hidden), 1.3)
            add(p + "mlp.up_proj.weight", (inter, hidden), 1.3)
            add(p + "mlp.down_proj.weight", (hidden, inter), 2.0)
    add_norm("model.norm.weight")
    if not tied:
        add("lm_head.weight", (vocab, hidden), 2.5)
    return weights


def merge_experts(weights, config):
    """transformers 5's own naming: w1 above w3 in gate_up_proj [experts, 2 inter, hidden]."""
    merged = {}
    for name, value in weights.items():
        if ".experts." not in name:
            merged[name.replace("block_sparse_moe", "mlp")] = value
    for layer in range(config["num_hidden_layers"]):
        old = [f"model.layers.{layer}.block_sparse_moe.experts.{e}."
               for e in range(config["num_local_experts"])]
        new = f"model.layers.{layer}.mlp.experts."
        merged[new + "gate_up_proj"] = torch.stack(
            [torch.cat([weights[p + "w1.weight"], weights[p + "w3.weight"]]) for p in old])
        merged[new + "down_proj"] = torch.stack([weights[p + "w2.weight"] for p in old])
    return merged


def consolidate(weights, config, merged):
    """Mistral's own naming. Its rotary embedding turns neighbouring pairs (0,1), (2,3) ... where
    Hugging Face turns (0, half), (1, half+1) ...: the rows of q and k change places. `merged` is
    the layout of the first Mixtral release: experts stacked by rows, w2 transposed."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads

    def interleave(w, n):
        rows, columns = w.shape
        return w.view(n, 2, rows // n // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()

    out = {"tok_embeddings.weight": weights["model.embed_tokens.weight"]}
    for layer in range(config["num_hidden_layers"]):
        p, q = f"model.layers.{layer}.", f"layers.{layer}."
        out[q + "attention.wq.weight"] = interleave(weights[p + "self_attn.q_proj.weight"], heads)
        out[q + "attention.wk.weight"] = interleave(weights[p + "self_attn.k_proj.weight"], kv_heads)
        out[q + "attention.wv.weight"] = weights[p + "self_attn.v_proj.weight"]
        out[q + "attention.wo.weight"] = weights[p + "self_attn.o_proj.weight"]
        out[q + "attention_norm.weight"] = weights[p + "input_layernorm.weight"]
        out[q + "ffn_norm.weight"] = weights[p + "post_attention_layernorm.weight"]
        moe = q + ("block_sparse_moe." if merged else "feed_forward.")
        out[moe + "gate.weight"] = weights[p + "block_sparse_moe.gate.weight"]
        experts = [f"{p}block_sparse_moe.experts.{e}." for e in range(config["num_local_experts"])]
        for w in ("w1", "w2", "w3"):
            each = [weights[f"{e}{w}.weight"] for e in experts]
            if merged:
                out[moe + w] = torch.cat([t.T if w == "w2" else t for t in each]).contiguous()
            else:
                out.update({f"{moe}experts.{e}.{w}.weight": t for e, t in enumerate(each)})
    out["norm.weight"] = weights["model.norm.weight"]
    out["output.weight"] = weights["lm_head.weight"]
    return out


def share_norm_storage(tensors):
    """As in released .pth files: several tensors are windows of one storage."""
    names = [name for name in tensors if name.endswith("norm.weight")]
    storage = torch.cat([tensors[name] for name in names])
    hidden = len(storage) // len(names)
    views = {name: storage[i * hidden:(i + 1) * hidden] for i, name in enumerate(names)}
    return {name: views.get(name, value) for name, value in tensors.items()}


def write_params_json(folder, config):
    params = {
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "hidden_dim": config["intermediate_size"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "moe": {"num_experts_per_tok": config["num_experts_per_tok"],
                "num_experts": config["num_local_experts"]},
        "rope_theta": config["rope_parameters"]["rope_theta"],
    }
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n")


def write_checkpoint(folder, case, weights):
    """Writes one case's files in the container that it asks for."""
    config, layout = case["config"], case.get("layout", "safetensors")
    if layout.startswith("consolidated"):
        write_params_json(folder, config)
        tensors = consolidate(weights, config, merged=layout == "consolidated_merged_pth")
        if layout == "consolidated_safetensors":
            save_file(tensors, folder / "consolidated.safetensors", {"format": "pt"})
        else:
            torch.save(share_norm_storage(tensors), folder / "consolidated.00.pth")
        return
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if layout == "pytorch_bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif layout == "merged_experts":
        save_file(merge_experts(weights, config), folder / "model.safetensors", {"format": "pt"})
    elif layout == "sharded":
        count, names, index = 3, sorted(weights), {}
        for shard in range(count):
            file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
            part = {name: weights[name] for name in names[shard::count]}
            save_file(part, folder / file, {"format": "pt"})
            index.update({name: file for name in part})
        total = sum(t.numel() * t.element_size() for t in weights.values())
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1) + "\n")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


def load_model(case, weights, folder):
    """The model as transformers loads it: from the folder itself where it can, else (consolidated
    layouts) from the same weights under Hugging Face names. Floats are widened exactly."""
    kwargs = {"dtype": torch.float32, "attn_implementation": "eager"}
    if (folder / "config.json").exists():
        # Its own loader of .bin files wants another package; the tensors are the same.
        if not (folder / "pytorch_model.bin").exists():
            return AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()
        config = AutoConfig.from_pretrained(folder)
        weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    else:
        config = AutoConfig.for_model(**case["config"])
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    state = merge_experts(weights, case["config"])
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    return model.eval()


def reset_rope(model, seq_len=None):
    """Forgets the longest sequence seen; with seq_len, holds the base that this length gives."""
    rope = model.model.rotary_emb
    if rope.rope_type != "dynamic":
        return
    inv_freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](rope.config, "cpu", seq_len=seq_len)
    rope.register_buffer("inv_freq", inv_freq, persistent=False)
    rope.max_seq_len_cached = seq_len or rope.config.max_position_embeddings
    # Otherwise a shorter sequence would bring the original frequencies back.
    rope.original_max_seq_len = 0 if seq_len else rope.config.max_position_embeddings


@torch.no_grad()
def greedy(model, prompt, use_cache):
    """Tokens of NEW_TOKENS greedy steps, eos or not, the gap of each to its rival, and the logits
    of every prompt position."""
    ids, gaps, cache, first = list(prompt), [], None, None
    for _ in range(NEW_TOKENS):
        feed = ids if cache is None else ids[-1:]
        out = model(torch.tensor([feed]), past_key_values=cache, use_cache=use_cache)
        cache = out.past_key_values if use_cache else None
        first = out.logits[0] if first is None else first
        best = torch.topk(torch.log_softmax(out.logits[0, -1].double(), -1), 2).values
        gaps.append(float(best[0] - best[1]))
        ids.append(int(out.logits[0, -1].argmax()))
    return ids[len(prompt):], min(gaps), first.numpy()


def run_case(case, model, prompts):
    """The golden record, and the logits of the last prompt."""
    dynamic = case["config"].get("rope_scaling", {}) and case["config"]["rope_scaling"].get(
        "rope_type") == "dynamic"
    records, logits, arrays = [], None, {}
    for prompt in prompts:
        reset_rope(model)
        tokens, gap, logits = greedy(model, prompt, use_cache=True)
        record = {"input_ids": prompt, "greedy_ids": tokens, "min_gap_nats": round(gap, 5),
                  "last_logits": [float(np.float32(x)) for x in logits[-1]]}
        if not dynamic:
            again, _, _ = greedy(model, prompt, use_cache=False)
            assert again == tokens, "transformers disagrees with itself"
        elif len(prompt) + NEW_TOKENS > case["config"]["max_position_embeddings"]:
            total = len(prompt) + NEW_TOKENS
            reset_rope(model, total)
            fixed, fixed_gap, fixed_logits = greedy(model, prompt, use_cache=True)
            record["fixed_base"] = {
                "seq_len": total, "greedy_ids": fixed, "min_gap_nats": round(fixed_gap, 5),
                "last_logits": [float(np.float32(x)) for x in fixed_logits[-1]]}
            arrays["fixed_base_logits.npy"] = fixed_logits
        records.append(record)
    arrays["logits.npy"] = logits
    return records, arrays


def make_prompts(case, rng):
    vocab = case["config"]["vocab_size"]
    return [[1] + [int(t) for t in rng.integers(3, vocab, length - 1)] for length in case["lengths"]]


def good(records):
    runs = [r for record in records for r in (record, record.get("fixed_base", record))]
    return all(r["min_gap_nats"] >= MIN_GAP and len(set(r["greedy_ids"])) >= MIN_DISTINCT for r in runs)


def make_case(name, case):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seeds = [case["seed"]] if "seed" in case else range(1000)
    for seed in seeds:
        weights = make_weights(case["config"], DTYPES[case["config"]["torch_dtype"]], seed)
        write_checkpoint(folder, case, weights)
        model = load_model(case, weights, folder)
        prompts = make_prompts(case, np.random.default_rng([seed, 1]))
        records, arrays = run_case(case, model, prompts)
        if good(records):
            break
    else:
        sys.exit(f"{name}: no seed gives greedy tokens that are clear of ties")
    if (folder / "params.json").exists():
        check_consolidated(folder, prompts[-1], arrays["logits.npy"])
    golden = {
        "case": name, "what": case["what"],
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
        "compute_dtype": "float32", "weights_dtype": case["config"]["torch_dtype"], "seed": seed,
        "new_tokens": NEW_TOKENS, "stops_at_eos": False,
        "logits": "logits.npy: float32 [tokens, vocab] of the last case's prompt",
        "cases": records,
    }
    if "same_tokens_as" in case:
        golden["same_tokens_as"] = case["same_tokens_as"]
        twin = json.loads((ROOT / case["same_tokens_as"] / "golden.json").read_text())
        assert [r["greedy_ids"] for r in twin["cases"]] == [r["greedy_ids"] for r in records], name
    text = json.dumps(golden)
    (folder / "golden.json").write_text(text.replace('{"input_ids"', '\n {"input_ids"') + "\n")
    for file, array in arrays.items():
        np.save(folder / file, array.astype(np.float32))
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(f.stat().st_size for f in folder.iterdir())
    gap = min(r["min_gap_nats"] for r in records)
    print(f"{name:36} seed {seed:4}  {size / 1024:6.0f} KB  smallest gap {gap:.4f} nats")


def check_consolidated(folder, prompt, want):
    """Computes the logits from the consolidated file alone, with rotations of neighbouring pairs as
    complex numbers and in float64: this tells that the layout written is the one described."""
    p = json.loads((folder / "params.json").read_text())
    files = {".safetensors": load_file, ".pth": lambda f: torch.load(f, weights_only=True)}
    file = next(folder.glob("consolidated*"))
    w = {k: v.double().numpy() for k, v in files[file.suffix](file).items()}
    t, hd, experts = len(prompt), p["head_dim"], p["moe"]["num_experts"]
    theta = p["rope_theta"] ** (-np.arange(0, hd, 2) / hd)
    turn = np.exp(1j * np.arange(t)[:, None] * theta)[:, None]

    def norm(x, g):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + p["norm_eps"]) * g

    def rotate(x):
        y = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([y.real, y.imag], -1).reshape(x.shape)

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    x = w["tok_embeddings.weight"][prompt]
    for layer in range(p["n_layers"]):
        q = f"layers.{layer}."
        a = norm(x, w[q + "attention_norm.weight"])
        xq = rotate((a @ w[q + "attention.wq.weight"].T).reshape(t, p["n_heads"], hd))
        xk = rotate((a @ w[q + "attention.wk.weight"].T).reshape(t, p["n_kv_heads"], hd))
        xv = (a @ w[q + "attention.wv.weight"].T).reshape(t, p["n_kv_heads"], hd)
        xk, xv = (np.repeat(m, p["n_heads"] // p["n_kv_heads"], 1) for m in (xk, xv))
        scores = np.einsum("qhd,khd->hqk", xq, xk) / hd**0.5 + np.triu(np.full((t, t), -np.inf), 1)
        mixed = np.einsum("hqk,khd->qhd", softmax(scores), xv).reshape(t, -1)
        x = x + mixed @ w[q + "attention.wo.weight"].T
        a = norm(x, w[q + "ffn_norm.weight"])
        moe = q + ("block_sparse_moe." if q + "block_sparse_moe.w1" in w else "feed_forward.")
        router = a @ w[moe + "gate.weight"].T
        for row in range(t):
            chosen = np.argsort(-router[row])[:p["moe"]["num_experts_per_tok"]]
            for e, share in zip(chosen, softmax(router[row, chosen])):
                if moe + "w1" in w:
                    w1, w2, w3 = (np.split(w[moe + n], experts)[e] for n in ("w1", "w2", "w3"))
                    w2 = w2.T
                else:
                    w1, w2, w3 = (w[f"{moe}experts.{e}.{n}.weight"] for n in ("w1", "w2", "w3"))
                gate = w1 @ a[row]
                x[row] += share * (w2 @ (gate / (1 + np.exp(-gate)) * (w3 @ a[row])))
    got = norm(x, w["norm.weight"]) @ w["output.weight"].T
    error = np.abs(got - want).max()
    assert error < 1e-4, f"{folder.name}: logits differ by {error}"


def check_case(name, case):
    folder = ROOT / name
    golden = json.loads((folder / "golden.json").read_text())
    weights = make_weights(case["config"], DTYPES[case["config"]["torch_dtype"]], golden["seed"])
    model = load_model(case, weights, folder)
    records, arrays = run_case(case, model, [r["input_ids"] for r in golden["cases"]])
    for got, want in zip(records, golden["cases"]):
        assert got["greedy_ids"] == want["greedy_ids"], f"{name}: other greedy tokens"
    worst = max(np.abs(a - np.load(folder / f)).max() for f, a in arrays.items())
    assert worst < 1e-4, f"{name}: logits differ by {worst}"
    print(f"{name:36} equal tokens, logits within {worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", help="all, if none is named")
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name, case in CASES.items():
        if not args.cases or name in args.cases:
            (check_case if args.check else make_case)(name, case)
    if not args.cases or "decoding" in args.cases:
        golden_decoding.check() if args.check else golden_decoding.make()


if __name__ == "__main__":
    main()
