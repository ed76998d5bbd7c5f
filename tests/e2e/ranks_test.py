"""tp.same_tokens: greedy tokens are those of one rank at any TP x PP x EP split.

Ostro starts its own ranks here; tests/mpi does the same under mpirun. Sums are split differently,
so a token may differ where the two candidates are tied (1e-4 nats in float32, 0.03 in bfloat16).
"""

import json
import os

import ostro
from ostro import GOLDEN, TINY

STEPS = 32
THREADS = {"threads": 1}

# Flags of `ostro build` for tiny-mixtral (8 heads, 4 KV heads, 8 experts, 6 layers).
MAPPINGS = {
    "tp2": {"tp_size": 2},
    "tp4": {"tp_size": 4},
    "pp2": {"pp_size": 2},
    "tp2_pp2": {"tp_size": 2, "pp_size": 2},
    "ep2": {"tp_size": 2, "moe_ep_size": 2},
    "ep4": {"tp_size": 4, "moe_ep_size": 4},
    "moe_tp2_ep2": {"tp_size": 4, "moe_tp_size": 2, "moe_ep_size": 2},
    "pp3": {"pp_size": 3},
    "tp8_kv_heads_replicated": {"tp_size": 8},
    "embedding_by_vocabulary": {
        "tp_size": 2,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
    },
    "embedding_by_hidden": {
        "tp_size": 2,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 1,
    },
}


def world_size(flags):
    return flags.get("tp_size", 1) * flags.get("pp_size", 1)


class Reference:
    """What one rank generates, with the logits that ties are judged by."""

    def __init__(self, case, engine, prompts, steps):
        path = case.path("reference.npy")
        self.prompts, self.steps = prompts, steps
        self.ids = case.generate(engine, prompts, steps, output_logits_npy=path, **THREADS)
        self.logits = ostro.Npy(path)

    def check(self, case, engine, what, tie=1e-4, launcher=(), **flags):
        got = case.generate(
            engine, self.prompts, self.steps, launcher=launcher, **{**THREADS, **flags}
        )
        equal = [
            case.assert_same_tokens(
                got[i],
                self.ids[i],
                lambda step, i=i: self.logits.row(i, step),
                tie=tie,
                what="%s, prompt %d" % (what, i),
            )
            for i in range(len(got))
        ]
        # Ties are rare: not every sequence may end in one.
        case.assertTrue(any(equal), what)


class TinyMixtral(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.one = ostro.build(os.path.join(cls.shared, "one"))
        cls.prompts = ostro.golden_prompts(4)

    def setUp(self):
        super().setUp()
        self.reference = Reference(self, self.one, self.prompts, STEPS)

    def check_mapping(self, flags):
        engine = ostro.build(self.path("engine"), **flags)
        mapping = ostro.read_json(engine, "config.json")["mapping"]
        self.assertEqual(mapping["world_size"], world_size(flags))
        self.assertEqual(
            len([f for f in os.listdir(engine) if f.startswith("rank")]), world_size(flags)
        )
        self.reference.check(self, engine, str(flags))

    def test_an_engine_of_one_rank_runs_on_several(self):
        for flags in (
            {"tp_size": 2},
            {"tp_size": 4},
            {"pp_size": 2},
            {"tp_size": 2, "pp_size": 2},
            {"tp_size": 4, "moe_ep_size": 2},
        ):
            self.reference.check(self, self.one, str(flags), **flags)

    def test_an_engine_of_four_ranks_runs_on_fewer(self):
        four = ostro.build(self.path("four"), tp_size=4)
        self.reference.check(self, four, "TP4 engine at TP2", tp_size=2)
        self.reference.check(self, four, "TP4 engine on one rank", tp_size=1)
        # On one rank nothing is summed in another order: the same bits.
        logits = self.path("one.npy")
        self.generate(four, self.prompts, 2, tp_size=1, output_logits_npy=logits, **THREADS)
        got = ostro.Npy(logits)
        for i in range(len(self.prompts)):
            self.assertEqual(got.row(i, 0), self.reference.logits.row(i, 0))

    def test_expert_parallel_engine_runs_on_other_mappings(self):
        spread = ostro.build(self.path("spread"), tp_size=4, moe_ep_size=4, pp_size=2)
        self.reference.check(self, spread, "as it is built")
        self.reference.check(self, spread, "on TP2", tp_size=2, pp_size=1)
        self.reference.check(self, spread, "without EP", moe_ep_size=1)
        self.reference.check(self, spread, "on one rank", tp_size=1, pp_size=1)

    def test_bfloat16(self):
        one = ostro.build(self.path("one"), dtype="bfloat16")
        two = ostro.build(self.path("two"), dtype="bfloat16", tp_size=2)
        reference = Reference(self, one, self.prompts, STEPS)
        reference.check(self, two, "TP2 in bfloat16", tie=0.03)

    def test_built_side_by_side_is_the_same_engine(self):
        flags = {"tp_size": 2, "pp_size": 2}
        one = ostro.build(self.path("one"), **flags)
        for name, parallel in {
            "parallel": {"parallel_build": True},
            "workers": {"workers": 3},
        }.items():
            other = ostro.build(self.path(name), **flags, **parallel)
            for file in sorted(os.listdir(one)):
                with open(os.path.join(one, file), "rb") as a, open(
                    os.path.join(other, file), "rb"
                ) as b:
                    self.assertEqual(a.read(), b.read(), file)

    def test_eval_on_ranks(self):
        flags = [
            "--dataset",
            os.path.join(TINY, "validation.jsonl"),
            "--tokenizer_dir",
            TINY,
            "--max_documents",
            "4",
            "--json",
            "--threads",
            "1",
        ]
        one = json.loads(self.ostro("eval", "perplexity", "--engine_dir", self.one, *flags).out)
        four = json.loads(
            self.ostro(
                "eval",
                "perplexity",
                "--engine_dir",
                self.one,
                *flags,
                "--tp_size",
                "2",
                "--pp_size",
                "2"
            ).out
        )
        self.assertEqual(one["tokens"], four["tokens"])
        self.assertAlmostEqual(one["nats_per_token"], four["nats_per_token"], delta=1e-3)


for _name, _flags in MAPPINGS.items():
    setattr(TinyMixtral, "test_" + _name, lambda self, flags=_flags: self.check_mapping(flags))


# Golden shapes with head, KV head and expert counts that divide oddly.
SHAPES = {
    "mixtral_odd_heads": [
        {"tp_size": 3, "moe_ep_size": 3},
        {"tp_size": 3, "moe_ep_size": 3, "pp_size": 2},
        {"tp_size": 6, "moe_ep_size": 3},
    ],
    "mixtral_5_experts_top3": [{"tp_size": 2}, {"tp_size": 2, "pp_size": 2}, {"tp_size": 4}],
    "mixtral_tied": [{"tp_size": 2}, {"pp_size": 2}],
    "mixtral_sliding": [{"tp_size": 2, "pp_size": 2}],
    "mixtral_merged_experts": [{"tp_size": 2}],
    "mixtral_consolidated_merged_pth": [{"tp_size": 2}],
    "llama_dense": [{"tp_size": 4}, {"tp_size": 2, "pp_size": 2}],
    "llama_rope_dynamic": [{"tp_size": 2}, {"pp_size": 2}],
    "llama_rope_llama3": [{"tp_size": 4}],
}


class Shapes(ostro.Case):
    def check_shape(self, name, mappings):
        folder = os.path.join(GOLDEN, name)
        golden = ostro.read_json(folder, "golden.json")
        prompts = [c["input_ids"] for c in golden["cases"]]
        want = [c.get("fixed_base", c)["greedy_ids"] for c in golden["cases"]]
        for i, flags in enumerate(mappings):
            engine = ostro.build(self.path("engine%d" % i), folder, **flags)
            # No step of these goldens is a tie.
            self.assertEqual(
                self.generate(engine, prompts, golden["new_tokens"], **THREADS),
                want,
                "%s %s" % (name, flags),
            )


for _name, _mappings in SHAPES.items():
    setattr(
        Shapes,
        "test_" + _name,
        lambda self, name=_name, mappings=_mappings: self.check_shape(name, mappings),
    )


if __name__ == "__main__":
    ostro.main()
