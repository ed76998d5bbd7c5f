#!/usr/bin/env python3
"""tiny-mixtral and the golden checkpoints on a GPU: `gpu_golden.py --ostro build/cuda/bin/ostro`.

float32: logits within 1e-3 of transformers', greedy tokens equal up to a tie. bfloat16: perplexity
within 0.2 % of float32's, the same tokens in a second run. Prints one line a check.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "e2e"))
import ostro  # noqa: E402
from ostro import GOLDEN, TINY  # noqa: E402

LOGIT_TOLERANCE = 1e-3
TIE = 1e-4
PERPLEXITY_TOLERANCE = 2e-3


class Checks:
    def __init__(self, binary):
        self.binary = binary
        self.dir = tempfile.mkdtemp(prefix="ostro_gpu.")
        self.failed = 0

    def run(self, *args):
        done = subprocess.run([self.binary, *map(str, args)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=200, check=False)
        if done.returncode != 0:
            raise RuntimeError("%s: exit %d: %s" % (" ".join(map(str, args)), done.returncode,
                                                   done.stderr.decode("utf-8", "replace")[-500:]))
        return done.stdout.decode("utf-8", "replace")

    def path(self, name):
        return os.path.join(self.dir, name)

    def build(self, name, model, dtype):
        self.run("build", "--model_dir", model, "--output_dir", self.path(name), "--dtype", dtype,
                 "--log_level", "error")
        return self.path(name)

    def generate(self, engine, prompts, tokens, *flags):
        with open(self.path("prompts.csv"), "w", encoding="utf-8") as f:
            f.writelines(",".join(map(str, ids)) + "\n" for ids in prompts)
        self.run("run", "--engine_dir", engine, "--device", "cuda", "--input_file",
                 self.path("prompts.csv"), "--output_csv", self.path("out.csv"), "--max_output_len",
                 tokens, *flags)
        return ostro.read_csv(self.path("out.csv"))

    def say(self, ok, what):
        self.failed += not ok
        print("  %s %s" % ("ok  " if ok else "FAIL", what), flush=True)

    def attempt(self, name, check):
        try:
            check()
        except Exception as error:  # each check is reported by itself
            self.say(False, "%s: %s" % (name, error))

    # A token that differs from transformers' must be a tie of the logits that chose it.
    @staticmethod
    def first_difference(got, want, rows):
        for i, (a, b) in enumerate(zip(got, want)):
            if a != b:
                return abs(rows(i)[a] - rows(i)[b])
        return 0.0 if len(got) == len(want) else float("inf")

    def tiny_float32(self):
        engine = self.build("f32", TINY, "float32")
        cases = ostro.read_json(GOLDEN, "generation.json")["cases"]
        ids = self.generate(engine, [c["input_ids"] for c in cases], 48, "--end_id", 2,
                            "--output_logits_npy", self.path("logits.npy"))
        logits, last = ostro.Npy(self.path("logits.npy")), ostro.Npy(
            os.path.join(GOLDEN, "last_logits.npy"))
        worst = max(ostro.largest_difference(logits.row(i, 0), last.row(i))
                    for i in range(len(cases)))
        self.say(worst < LOGIT_TOLERANCE, "float32 logits within %.1e of transformers" % worst)
        gaps = [self.first_difference(ids[i], [t for t in c["greedy_ids"] if t != 2],
                                      lambda step, i=i: logits.row(i, step))
                for i, c in enumerate(cases)]
        self.say(max(gaps) < TIE, "float32 greedy tokens of %d prompts, largest tie %.1e"
                 % (len(cases), max(gaps)))

    def perplexity(self, engine):
        return json.loads(self.run("eval", "perplexity", "--engine_dir", engine, "--device", "cuda",
                                   "--tokenizer_dir", TINY, "--dataset",
                                   os.path.join(TINY, "validation.jsonl"), "--max_documents", 100,
                                   "--json"))["perplexity"]

    def tiny_bfloat16(self, dtype="bfloat16"):
        engine = self.build(dtype, TINY, dtype)
        want = ostro.read_json(GOLDEN, "likelihood.json")["summary"]["f32"]["perplexity"]
        got = self.perplexity(engine)
        self.say(abs(got / want - 1) < PERPLEXITY_TOLERANCE,
                 "%s perplexity %.4f, transformers float32 %.4f (%+.3f %%)"
                 % (dtype, got, want, 100 * (got / want - 1)))
        prompts = [c["input_ids"] for c in ostro.read_json(GOLDEN, "generation.json")["cases"]]
        once = self.generate(engine, prompts, 48, "--end_id", -1)
        again = self.generate(engine, prompts, 48, "--end_id", -1)
        self.say(once == again, "%s: the same tokens in a second run" % dtype)
        alone = [self.generate(engine, [p], 48, "--end_id", -1)[0] for p in prompts[:4]]
        self.say(alone == once[:4], "%s: the same tokens alone as in a batch" % dtype)

    def shape(self, name):
        folder = os.path.join(GOLDEN, name)
        golden = ostro.read_json(folder, "golden.json")
        engine = self.build("shape", folder, "float32")
        cases = golden["cases"]
        ids = self.generate(engine, [c["input_ids"] for c in cases], golden["new_tokens"],
                            "--end_id", -1, "--output_logits_npy", self.path("logits.npy"))
        logits = ostro.Npy(self.path("logits.npy"))
        wanted = [c.get("fixed_base", c) for c in cases]
        worst = max(ostro.largest_difference(logits.row(i, 0), w["last_logits"])
                    for i, w in enumerate(wanted))
        same = all(ids[i] == w["greedy_ids"] for i, w in enumerate(wanted))
        self.say(same and worst < LOGIT_TOLERANCE,
                 "%s: logits within %.1e, tokens %s" % (name, worst, "equal" if same else "differ"))
        shutil.rmtree(engine)


def main():
    if len(sys.argv) != 3 or sys.argv[1] != "--ostro":
        raise SystemExit(__doc__)
    checks = Checks(os.path.abspath(sys.argv[2]))
    try:
        checks.attempt("tiny-mixtral float32", checks.tiny_float32)
        for dtype in ("bfloat16", "float16"):
            checks.attempt("tiny-mixtral " + dtype, lambda dtype=dtype: checks.tiny_bfloat16(dtype))
        for name in sorted(d for d in os.listdir(GOLDEN) if os.path.isdir(os.path.join(GOLDEN, d))):
            checks.attempt(name, lambda name=name: checks.shape(name))
    finally:
        shutil.rmtree(checks.dir, ignore_errors=True)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
