"""Pipeline stages work on different micro-batches at the same time: seen in the trace of a run.

The order of events is what is checked, not times, so that it holds on a machine with other work. Of
stages that take turns none of it is true: there step k + 1 begins when all have done with step k.
"""

import os

import ostro

SEQUENCES = 24
TOKENS = 40


class Step:
    """One rank's spans of one step, by name."""

    def __init__(self):
        self.spans = {}

    def begin(self, name):
        return self.spans[name]["ts"]

    def end(self, name):
        return self.spans[name]["ts"] + self.spans[name]["dur"]


class Traced(ostro.Case):
    """Runs of an engine with --trace, and what must be seen there."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"))
        cls.prompts = [[1 + (7 * i + 3 * j) % 250 for j in range(4 + i)] for i in range(SEQUENCES)]

    def trace(self, **flags):
        """(ids, name of each row, {rank: {step: Step}})"""
        path = self.path("trace.json")
        ids = self.generate(self.engine, self.prompts, TOKENS, threads=1, trace=path, **flags)
        names, ranks = {}, {}
        for event in ostro.read_json(path)["traceEvents"]:
            rank = event["tid"]
            if event["ph"] == "M":
                names[rank] = event["args"]["name"]
                continue
            self.assertEqual(event["ph"], "X")
            step = ranks.setdefault(rank, {}).setdefault(event["args"]["step"], Step())
            self.assertNotIn(event["name"], step.spans)
            step.spans[event["name"]] = event
        return ids, names, ranks

    def check_stages(self, ranks, stages):
        """rank.same_plan: all stages have the same steps, each with what it does."""
        self.assertEqual(ranks.keys(), set(range(stages)))
        for stage, steps in ranks.items():
            self.assertEqual(steps.keys(), ranks[0].keys())
            want = {"compute"}
            want |= {"plan", "wait", "sample"} if stage == 0 else {"receive"}
            want |= {"send"} if stages > 1 else set()
            for number, step in steps.items():
                self.assertEqual(step.spans.keys(), want)
                tokens = {e["args"]["tokens"] for e in step.spans.values()}
                self.assertEqual(tokens, {ranks[0][number].spans["plan"]["args"]["tokens"]})

    def check_overlap(self, ranks, stages):
        numbers = sorted(ranks[0])
        middle = numbers[len(numbers) // 4 : -len(numbers) // 4]
        # Every stage always has its part of the sequences.
        for k in middle:
            tokens = ranks[0][k].spans["compute"]["args"]["tokens"]
            self.assertAlmostEqual(tokens, SEQUENCES / stages, delta=1.01)
        first, last = ranks[0], ranks[stages - 1]
        # The first stage computes step k + 1 before step k is done, and its tokens are chosen.
        ahead = [k for k in middle if first[k + 1].end("compute") < first[k].begin("sample")]
        self.assertEqual(ahead, middle)
        overlapped = [
            k
            for k in middle
            if first[k + 1].begin("compute") < last[k].end("compute")
            and last[k].begin("compute") < first[k + 1].end("compute")
        ]
        return len(overlapped) / len(middle)


class Pipeline(Traced):
    def test_one_rank(self):
        _, names, ranks = self.trace()
        self.assertEqual(names, {0: "rank 0: stage 0, tp 0"})
        self.check_stages(ranks, 1)
        self.assertGreaterEqual(len(ranks[0]), TOKENS)
        for k in range(len(ranks[0]) - 1):
            self.assertLessEqual(ranks[0][k].end("sample"), ranks[0][k + 1].begin("plan"))

    def test_two_stages_overlap(self):
        one = self.generate(self.engine, self.prompts, TOKENS, threads=1)
        ids, names, ranks = self.trace(pp_size=2)
        self.assertEqual(ids, one)  # bit for bit: nothing is summed in another order
        self.assertEqual(names, {0: "rank 0: stage 0, tp 0", 1: "rank 1: stage 1, tp 0"})
        self.check_stages(ranks, 2)
        # On two quiet cores nearly all do; a stage that has no core cannot.
        self.assertGreater(self.check_overlap(ranks, 2), 0.1)

    def test_three_stages(self):
        one = self.generate(self.engine, self.prompts, TOKENS, threads=1)
        ids, _, ranks = self.trace(pp_size=3)
        self.assertEqual(ids, one)
        self.check_stages(ranks, 3)
        self.check_overlap(ranks, 3)

    def test_a_long_prompt_fills_the_stages_with_its_chunks(self):
        self.prompts = [[1 + j % 250 for j in range(200)]]
        _, _, ranks = self.trace(pp_size=2, max_batch_size=4, max_num_tokens=64)
        chunks = [k for k in ranks[0] if ranks[0][k].spans["compute"]["args"]["tokens"] > 1]
        self.assertEqual(len(chunks), 7)  # of 32
        for k in chunks[:-1]:
            self.assertLess(ranks[0][k + 1].end("compute"), ranks[0][k].begin("sample"))

    def test_a_trace_that_cannot_be_written(self):
        self.refused(
            *("run", "--engine_dir", self.engine, "--max_output_len", 4),
            *("--input_file", self.write("p.csv", "1,5\n"), "--trace", "/nowhere/trace.json"),
            text="cannot write /nowhere/trace.json: /nowhere: No such file or directory (errno 2)",
        )


if __name__ == "__main__":
    ostro.main()
