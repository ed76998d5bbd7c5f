"""Engines of dummy weights, and the commands beside `run`: inspect, eval and the help."""

import json
import math
import os
import re
import shutil

import ostro
from ostro import GOLDEN


class Dummy(ostro.Case):
    """Engines of random weights say so at every run."""

    WARNING = "ostro: this engine has dummy weights: what it generates means nothing\n"

    def build(self, name, *args, **flags):
        result = self.ostro("build", "--output_dir", self.path(name), *args, *ostro.flags_of(flags))
        self.assertRegex(
            result.err,
            r"\[ostro\] \[warning\] there are no weights.*: this engine gets dummy "
            "ones, and every run will say so\n",
        )
        return self.path(name)

    def tokens(self, engine, *flags):
        csv = self.write("p.csv", "1,5,9\n1,120\n")
        result = self.ostro(
            "run",
            "--engine_dir",
            engine,
            "--input_file",
            csv,
            "--max_output_len",
            "5",
            "--end_id",
            "-1",
            *flags,
        )
        self.assertEqual(result.err, self.WARNING)
        return result.out

    def test_preset_with_overrides(self):
        engine = self.build("engine", "--preset", "mixtral-8x7b", **ostro.SMALL)
        config = ostro.read_json(engine, "config.json")
        self.assertTrue(config["dummy"])
        model = config["model"]
        self.assertEqual(
            (
                model["layers"],
                model["hidden"],
                model["heads"],
                model["kv_heads"],
                model["head_dim"],
                model["inter"],
                model["vocab"],
                model["context"],
            ),
            (1, 64, 4, 2, 16, 96, 128, 64),
        )
        self.assertEqual((model["experts"], model["top_k"], model["dtype"]), (8, 2, "bfloat16"))
        self.assertEqual(self.tokens(engine), self.tokens(engine))
        out = self.ostro("inspect", "--engine_dir", engine).out
        self.assertIn("dummy weights", out)

    def test_the_same_model_on_two_ranks(self):
        one = self.build("one", "--preset", "mixtral-8x7b", "--dtype", "float32", **ostro.SMALL)
        two = self.build(
            "two",
            "--preset",
            "mixtral-8x7b",
            "--dtype",
            "float32",
            "--tp_size",
            "2",
            "--moe_ep_size",
            "2",
            **ostro.SMALL,
        )
        self.assertEqual(self.tokens(one), self.tokens(two))

    def test_without_an_engine(self):
        shape = ("--preset", "mixtral-8x7b", "--dtype", "float32")
        engine = self.build("engine", *shape, **ostro.SMALL)
        csv = self.path("p.csv")
        want = self.tokens(engine)
        flags = (*shape, *ostro.flags_of(ostro.SMALL), "--input_file", csv, "--max_output_len", "5")
        got = self.ostro("run", "--dummy_weights", *flags, "--end_id", "-1")
        self.assertEqual((got.out, got.err), (want, self.WARNING))
        two = self.ostro("run", "--dummy_weights", *flags, "--end_id", "-1", "--tp_size", "2")
        self.assertEqual((two.out, two.err), (want, self.WARNING))
        refused = self.ostro("run", "--engine_dir", engine, *flags, code=2)
        self.assertIn("go with --dummy_weights: an engine has its own", refused.err)

    def test_flags_alone(self):
        engine = self.build("engine", "--moe_num_experts", "4", **ostro.SMALL)
        model = ostro.read_json(engine, "config.json")["model"]
        self.assertEqual(
            (model["architecture"], model["experts"], model["top_k"]), ("MixtralForCausalLM", 4, 2)
        )
        self.tokens(engine)
        dense = self.build("dense", **ostro.SMALL)
        model = ostro.read_json(dense, "config.json")["model"]
        self.assertEqual(
            (model["architecture"], model["experts"], model["dtype"]),
            ("LlamaForCausalLM", 0, "float16"),
        )
        self.tokens(dense)

    def test_config_json_alone(self):
        os.mkdir(self.path("model"))
        shutil.copy(
            os.path.join(GOLDEN, "mixtral_5_experts_top3", "config.json"), self.path("model")
        )
        engine = self.build("engine", "--model_dir", self.path("model"))
        model = ostro.read_json(engine, "config.json")["model"]
        self.assertEqual((model["experts"], model["top_k"], model["layers"]), (5, 3, 2))
        csv = self.write("q.csv", "1,5\n")
        result = self.ostro(
            "run", "--engine_dir", engine, "--input_file", csv, "--max_output_len", "3"
        )
        self.assertEqual(result.err, self.WARNING)
        data = self.write("d.jsonl", '{"input_ids": [1, 2, 3]}\n')
        result = self.ostro("eval", "perplexity", "--engine_dir", engine, "--dataset", data)
        self.assertEqual(result.err, self.WARNING)


class Inspect(ostro.Case):
    def test_inspect(self):
        engine = ostro.build(self.path("engine"), dtype="auto", tp_size=2, pp_size=2)
        out = self.ostro("inspect", "--engine_dir", engine, "--verify").out
        for part in (
            "MixtralForCausalLM, 6 layers",
            "8 experts of 384, 2 a token",
            "bfloat16",
            "4: tp 2 x pp 2",
            "rank 3",
            "verified: every file has its checksum",
        ):
            self.assertIn(part, out)
        tensors = self.ostro("inspect", "--engine_dir", engine, "--tensors").out
        self.assertRegex(tensors, r"layers\.5\.experts\.7\.down +bf16 +\[256, 384\]")
        config = json.loads(self.ostro("inspect", "--engine_dir", engine, "--json").out)
        self.assertEqual(config, ostro.read_json(engine, "config.json"))


class Plan(ostro.Case):
    """inspect --plan: what a layout takes, without building anything."""

    def plan(self, *args, **more):
        return self.ostro("inspect", "--plan", *args, **more).out

    def test_one_layout(self):
        out = self.plan("--preset", "mixtral-8x7b", "--enable_fp8", "--fp8_kv_cache")
        self.assertRegex(out, r"\n +0 +45\.13\d +1\.34\d +0\.262 +0\.262 ")
        self.assertIn(" 65536\nfits: the KV cache has ", out)
        self.assertRegex(out, r"\ndecode +256 ")
        self.assertRegex(out, r"\nprefill +8192 ")
        small = self.plan("--preset", "mixtral-8x7b")
        self.assertIn("does not fit: rank 0 needs ", small)
        self.assertIn("  would fit: --tp_size 2 --pp_size 1\n", small)
        self.assertIn("  would fit: --enable_fp8\n", small)
        self.assertIn("  would fit: --use_weight_only --weight_only_precision int4\n", small)
        int4 = ["--use_weight_only", "--weight_only_precision", "int4"]
        out = self.plan("--preset", "mixtral-8x7b", *int4)
        self.assertIn("weights int4, KV cache bfloat16", out)
        self.assertRegex(out, r"\n +0 +23\.25\d +0\.692 +0\.262 +0\.262 ")
        for flags in (["--gpu", "h200"], ["--tp_size", 2], ["--memory_gb", 141], ["--pp_size", 2]):
            self.assertIn("\nfits: ", self.plan("--preset", "mixtral-8x7b", *flags))

    def test_an_engine(self):
        engine = ostro.build(self.path("engine"), dtype="bfloat16", tp_size=2)
        out = self.plan("--engine_dir", engine)
        self.assertIn("tp 2 x pp 1, experts tp 2 x ep 1", out)
        self.assertIn("\nfits: ", out)
        spread = self.plan("--engine_dir", engine, "--tp_size", 4, "--moe_ep_size", 4)
        self.assertIn("tp 4 x pp 1, experts tp 1 x ep 4", spread)
        self.assertEqual(len([li for li in spread.split("\n") if li.startswith("   3 ")]), 1)

    def test_auto(self):
        flags = ["--preset", "mixtral-8x22b", "--gpus", 8]
        out = self.plan("auto", *flags)
        self.assertRegex(out, r"\n +8 +1 +1 +1 +281\.\d GB does not fit: a rank needs 28\d")
        self.assertRegex(out, r"\nrecommended: \d engines? of tp \d x pp \d, ep \d: \d+ output")
        self.assertIn("\nfor the shortest answers: 1 engine of tp 8 x pp 1, ep 1: ", out)
        none = self.plan("auto", "--preset", "mixtral-8x22b", "--gpus", 1)
        self.assertIn("no layout of 1 GPUs holds a request of 2000 tokens", none)

    def test_refusals(self):
        shape = ["inspect", "--preset", "mixtral-8x7b"]
        for flags, text in (
            (["--plan", "best"], '--plan is "best"; it takes no value or auto'),
            (["--plan", "auto"], "--gpus is 0; it must be from 1 to 64"),
            (["--plan", "auto", "--gpus", 65], "--gpus is 65; it must be from 1 to 64"),
            (["--plan", "--gpus", 2], "goes with that alone"),
            (["--plan", "--gpu", "b200"], 'there is no GPU "b200"; known are h100 and h200'),
            (["--plan", "--tp_size", 5], "tp_size 5 does not divide the 32 attention heads"),
            (["--plan", "auto", "--gpus", 2, "--tp_size", 2], "tries every --tp_size"),
            (["--plan", "--memory_gb", 0.5], "--memory_gb is 0.5; the driver alone takes 0.6"),
            (["--plan", "--verify"], "--plan goes without --tensors, --verify and --json"),
            ([], "go with --plan"),
        ):
            with self.subTest(text):
                self.refused(*shape, *flags, match=re.escape(text))


class Help(ostro.Case):
    def test_help(self):
        for command in (["build"], ["run"], ["bench"], ["eval", "perplexity"], ["inspect"]):
            result = self.ostro(*command, "--help")
            self.assertEqual(result.err, "")
            self.assertIn("--help", result.out)
        self.assertIn("usage: ostro COMMAND", self.ostro("--help").out)
        self.assertIn("usage: ostro COMMAND", self.ostro(code=2).out)
        self.assertRegex(self.ostro("--version").out, r"^ostro \d+\.\d+\.\d+\n$")

    def test_eval_prints_a_line_without_json(self):
        engine = ostro.build(self.path("engine"), os.path.join(GOLDEN, "llama_dense"))
        data = self.write("d.jsonl", '{"input_ids": [1, 2, 3]}\n\n{"input_ids": [4, 5]}\n')
        args = ["eval", "perplexity", "--engine_dir", engine, "--dataset", data]
        self.assertRegex(
            self.ostro(*args).out,
            r"^2 documents, 3 tokens: [0-9.]+ nats a token, perplexity [0-9.]+\n$",
        )
        whole = json.loads(self.ostro(*args, "--json").out)
        self.assertEqual((whole["tokens"], whole["documents"]), (3, 2))
        self.assertAlmostEqual(math.exp(whole["nats_per_token"]), whole["perplexity"], places=6)
        cut = json.loads(self.ostro(*args, "--json", "--max_length", "2").out)
        self.assertEqual(cut["tokens"], 2)
        self.check_stride(engine)
        first = json.loads(self.ostro(*args, "--json", "--max_documents", "1").out)
        self.assertEqual((first["tokens"], first["documents"]), (2, 1))

    def check_stride(self, engine):
        """Windows of 4 tokens, 2 apart: each scores what a run of its own of that window does."""
        ids = [1, 9, 4, 7, 3, 8, 2]

        def nats(documents, *flags):
            lines = "".join(json.dumps({"input_ids": d}) + "\n" for d in documents)
            data = self.write("s.jsonl", lines)
            args = ["eval", "perplexity", "--engine_dir", engine, "--dataset", data, "--json"]
            out = json.loads(self.ostro(*args, *flags).out)
            return out["nats_per_token"] * out["tokens"], out["tokens"]

        # [0, 4) whole, then [2, 6) without [2, 4), then [4, 7) without [4, 6).
        first, second, third = (nats([ids[a:b]])[0] for a, b in ((0, 4), (2, 6), (4, 7)))
        want = first + second - nats([ids[2:4]])[0] + third - nats([ids[4:6]])[0]
        got, tokens = nats([ids], "--max_length", "4", "--stride", "2")
        self.assertEqual(tokens, 6)
        self.assertAlmostEqual(got, want, places=4)
        self.refused("eval", "perplexity", "--engine_dir", engine, "--dataset",
                     self.path("s.jsonl"), "--max_length", "4", "--stride", "5",
                     text="--stride is 5; it must be from 1 to the 4 tokens of a window")


if __name__ == "__main__":
    ostro.main()
