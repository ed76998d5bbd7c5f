"""batch.invariant: what a request gets, bit by bit, whatever runs beside it and however it is cut.

Tokens, log-probs and logits of a request are the same alone, among fifteen others, with its prompt
cut into chunks, on one thread and on two, on the first run and on the tenth.
"""

import os

import ostro
from ostro import GOLDEN

STEPS = 24


class Fingerprint:
    """All that `ostro run` tells of each prompt."""

    def __init__(self, case, engine, prompts, steps=STEPS, **flags):
        paths = {name: case.path(name) for name in ("log_probs", "cum_log_probs", "logits")}
        self.ids = case.generate(
            engine, prompts, steps, **{"output_%s_npy" % n: p for n, p in paths.items()}, **flags
        )
        read = {name: ostro.Npy(path) for name, path in paths.items()}
        self.rows = [
            tuple(read[n].row(i).tobytes() for n in ("log_probs", "cum_log_probs", "logits"))
            for i in range(len(prompts))
        ]

    def check(self, case, other, i, j=0):
        """Sequence i here is sequence j of the other."""
        case.assertEqual(self.ids[i], other.ids[j])
        case.assertEqual(self.rows[i][0], other.rows[j][0], "log-probs")
        case.assertEqual(self.rows[i][1], other.rows[j][1], "their sums")
        case.assertEqual(self.rows[i][2], other.rows[j][2], "logits")


class BatchInvariance(ostro.Case):
    DTYPE = "bfloat16"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"), dtype=cls.DTYPE)
        known = [c["input_ids"] for c in ostro.read_json(GOLDEN, "generation.json")["cases"]]
        # Sixteen prompts of 2 to 233 tokens; the first is the one that is looked at.
        subject = sum(known, [])[:41]
        cls.prompts = [subject, known[0][:2], sum(known * 4, [])[:233], sum(known, [])[7:60]]
        cls.prompts += known
        assert len(cls.prompts) == 16

    def test_alone_and_among_sixteen(self):
        together = Fingerprint(self, self.engine, self.prompts)
        for i in (0, 1, 2, 9):
            alone = Fingerprint(self, self.engine, [self.prompts[i]])
            together.check(self, alone, i)

    def test_order_does_not_matter(self):
        there = Fingerprint(self, self.engine, self.prompts)
        back = Fingerprint(self, self.engine, self.prompts[::-1])
        for i in range(16):
            there.check(self, back, i, 15 - i)

    def test_twice_in_one_batch(self):
        both = Fingerprint(self, self.engine, [self.prompts[0], self.prompts[3], self.prompts[0]])
        both.check(self, both, 0, 2)

    def test_chunks(self):
        alone = Fingerprint(self, self.engine, [self.prompts[0]])
        for tokens in (16, 7):
            limits = {"max_num_tokens": tokens, "max_batch_size": 4}
            chunked = Fingerprint(self, self.engine, [self.prompts[0]], **limits)
            chunked.check(self, alone, 0)
            together = Fingerprint(self, self.engine, self.prompts, **limits)
            together.check(self, alone, 0)
        long = Fingerprint(self, self.engine, [self.prompts[2]])
        Fingerprint(self, self.engine, self.prompts, max_num_tokens=16, max_batch_size=4).check(
            self, long, 2
        )

    def test_context_logits_in_chunks(self):
        whole, cut = self.path("whole"), self.path("cut")
        for path, flags in {whole: {}, cut: {"max_num_tokens": 16, "max_batch_size": 2}}.items():
            self.generate(
                self.engine, [self.prompts[2]], 1, output_context_logits_npy=path, **flags
            )
        self.assertEqual(ostro.Npy(whole).shape, (233, 8192))
        self.assertEqual(ostro.Npy(whole).values, ostro.Npy(cut).values)

    def test_threads(self):
        one = Fingerprint(self, self.engine, self.prompts, threads=1)
        for threads in (2, 3):
            two = Fingerprint(self, self.engine, self.prompts, threads=threads)
            for i in range(16):
                two.check(self, one, i, i)

    def test_a_small_cache(self):
        """Sequences that wait for room get the same as those that do not."""
        alone = Fingerprint(self, self.engine, [self.prompts[0]])
        crowded = Fingerprint(self, self.engine, self.prompts, max_tokens_in_paged_kv_cache=320)
        crowded.check(self, alone, 0)

    def test_seeds(self):
        sampling = {"temperature": 1.1, "top_k": 0, "top_p": 0.95}
        alone = Fingerprint(self, self.engine, [self.prompts[0]], random_seed=11, **sampling)
        again = Fingerprint(self, self.engine, [self.prompts[0]], random_seed=11, **sampling)
        again.check(self, alone, 0)
        together = Fingerprint(
            self,
            self.engine,
            self.prompts,
            random_seed=11,
            max_num_tokens=16,
            max_batch_size=5,
            **sampling
        )
        together.check(self, alone, 0)
        other = Fingerprint(self, self.engine, [self.prompts[0]], random_seed=12, **sampling)
        self.assertNotEqual(other.ids, alone.ids)
        greedy = Fingerprint(self, self.engine, [self.prompts[0]])
        self.assertNotEqual(greedy.ids, alone.ids)


class BatchInvarianceFloat32(BatchInvariance):
    DTYPE = "float32"


if __name__ == "__main__":
    ostro.main()
