"""`ostro bench serve` against `ostro serve`, and `ostro bench throughput` of the same engine."""

import json
import os

import serving
from serving import ostro


class Bench(serving.Case):
    FLAGS = {"max_batch_size": 16}

    def bench(self, what, *args, **flags):
        out = self.path("out.json")
        if what == "serve":
            flags = {"base_url": "http://127.0.0.1:%d" % self.server.port, **flags}
        else:
            flags = {"engine_dir": self.engine, "warm_up": 0.1, "threads": 1, **flags}
        result = self.ostro("bench", what, *args, *ostro.flags_of({"json": out, **flags}))
        return ostro.read_json(out), result.out

    def check_figures(self, figures, requests, tokens):
        """What must hold of any run of `requests` with `tokens` of output in all."""
        self.assertEqual((figures["completed"], figures["failed"]), (requests, 0))
        self.assertEqual(figures["errors"], {})
        self.assertEqual(figures["total_output_tokens"], tokens)
        seconds = figures["duration"]
        self.assertAlmostEqual(figures["request_throughput"], requests / seconds, places=6)
        self.assertAlmostEqual(figures["output_throughput"], tokens / seconds, places=6)
        total = tokens + figures["total_input_tokens"]
        self.assertAlmostEqual(figures["total_token_throughput"], total / seconds, places=6)
        for name in ("ttft", "tpot", "itl", "e2el"):
            ordered = [figures["%s_%s_ms" % (p, name)] for p in ("p50", "p90", "p99", "max")]
            self.assertEqual(ordered, sorted(ordered), name)
            # Tokens that are read together have no time between them.
            (self.assertGreaterEqual if name == "itl" else self.assertGreater)(ordered[0], 0, name)
            self.assertEqual(figures["median_%s_ms" % name], ordered[0])
        self.assertLessEqual(figures["max_e2el_ms"], seconds * 1000 * 1.0001)
        self.assertGreater(figures["median_e2el_ms"], figures["median_ttft_ms"])

    def test_serve_counts_what_the_server_counts(self):
        name = "ostro_output_tokens_total"
        before = self.server.metrics()
        figures, out = self.bench("serve", num_prompts=24, input_len="uniform:5,40", output_len=12,
                                  max_concurrency=4, vocab_size=8192)
        self.check_figures(figures, 24, 24 * 12)
        self.assertEqual(figures["max_concurrent_requests"], 4)
        self.assertGreater(figures["steady_output_throughput"], 0)
        self.assertTrue(24 * 5 <= figures["total_input_tokens"] <= 24 * 40)
        after = self.server.metrics()
        self.assertEqual(after[name] - before[name], 24 * 12)
        self.assertIn("requests  24 completed, 0 failed", out)
        again, _ = self.bench("serve", num_prompts=24, input_len="uniform:5,40", output_len=12)
        self.assertEqual(again["total_input_tokens"], figures["total_input_tokens"])
        self.assertEqual(again["max_concurrent_requests"], 24)

    def test_serve_sends_each_kind_of_a_data_set(self):
        data = self.write("d.jsonl", "".join(json.dumps(line) + "\n" for line in (
            {"prompt": "Once upon a time", "max_tokens": 3},
            {"input_ids": [1, 50, 60], "max_tokens": 4},
            {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5})))
        figures, _ = self.bench("serve", dataset=data, ignore_eos=True, warmup=2)
        self.check_figures(figures, 3, 3 + 4 + 5)
        figures, _ = self.bench("serve", dataset=data, ignore_eos=True, num_prompts=7,
                                request_rate=200, goodput=["e2el:0", "ttft:100000"])
        self.check_figures(figures, 7, 2 * 12 + 3)
        self.assertEqual((figures["request_goodput"], figures["good_completed"]), (0, 0))

    def test_serve_sends_random_prompts_as_text(self):
        figures, _ = self.bench("serve", num_prompts=3, input_len=20, output_len=4,
                                tokenizer_dir=ostro.TINY, endpoint="/v1/chat/completions")
        self.check_figures(figures, 3, 12)

    def test_serve_tells_what_failed(self):
        flags = {"num_prompts": 12, "output_len": 30}
        figures, out = self.bench("serve", input_len="uniform:980,1008", **flags)
        self.assertEqual(figures["completed"] + figures["failed"], 12)
        self.assertTrue(0 < figures["failed"] < 12)
        self.assertEqual(sum(figures["errors"].values()), figures["failed"])
        self.assertRegex(out, r"failed +\d+ x HTTP 400: the prompt has (99|100)\d tokens")
        url = "http://127.0.0.1:%d" % self.server.port
        self.refused("bench", "serve", "--base_url", url, "--input_len", "1010",
                     *ostro.flags_of(flags), match="^all 12 requests failed; the first: HTTP 400: ")

    def test_serve_refuses_what_cannot_work(self):
        self.refused("bench", "serve", "--base_url", "http://127.0.0.1:1",
                     match="^no server answers at http://127.0.0.1:1: Connection refused$")
        for flags, match in ((["--request_rate", "0"], "--request_rate"),
                             (["--input_len", "zipf:3"], "--input_len"),
                             (["--goodput", "ttft"], "--goodput"),
                             (["--endpoint", "v1"], "--endpoint"),
                             (["--vocab_size", "2"], "vocabulary"),
                             (["--base_url", "https://x"], None)):
            self.refused("bench", "serve", *flags, code=2 if match else 3, match=match)

    def test_throughput(self):
        for flags in ({"capacity_policy": "max_utilization"}, {"tp_size": 2}):
            figures, out = self.bench("throughput", num_prompts=40, input_len="uniform:5,40",
                                      output_len="uniform:8,16", max_batch_size=8, seed=5, **flags)
            tokens = figures["total_output_tokens"]
            self.assertTrue(40 * 8 <= tokens <= 40 * 16)
            self.check_figures(figures, 40, tokens)
            self.assertEqual(figures["max_running"], 8)
            self.assertLessEqual(figures["steady_duration"], figures["duration"])
            self.assertTrue(0 < figures["in_steps"] <= 1.001, figures["in_steps"])
            # Above 1 where caches hold the model, or other work has slowed the limit's measurement.
            self.assertTrue(0 < figures["of_limit"] < 10, figures["of_limit"])
            self.assertGreaterEqual(figures["steps"], tokens // 8)
            policy = flags.get("capacity_policy", "guaranteed_no_evict")
            self.assertEqual(figures["capacity_policy"], policy)
            self.assertIn("capacity policy " + policy, out)

    def test_throughput_pauses_where_the_cache_is_small(self):
        figures, _ = self.bench("throughput", num_prompts=8, input_len=64, output_len=128,
                                max_tokens_in_paged_kv_cache=512, capacity_policy="max_utilization")
        self.check_figures(figures, 8, 8 * 128)
        self.assertGreater(figures["pauses"], 0)
        self.assertEqual(figures["kv_cache_tokens"], 512)
        self.assertGreater(figures["max_kv_cache_usage"], 0.9)

    def test_throughput_of_a_data_set(self):
        data = self.write("d.jsonl", '{"prompt": "Once upon a time", "max_tokens": 3}\n'
                          '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}\n'
                          '{"input_ids": [5, 6, 7]}\n')
        figures, _ = self.bench("throughput", dataset=data, tokenizer_dir=ostro.TINY, output_len=2,
                                ignore_eos=True, request_rate=100)
        self.check_figures(figures, 3, 10)
        self.refused("bench", "throughput", "--engine_dir", self.engine, "--dataset", data,
                     text="the data set has texts: give --tokenizer_dir")
        self.refused("bench", "throughput", "--engine_dir", self.engine, "--input_len", "1020",
                     "--output_len", "9", "--num_prompts", "1", "--warm_up", "0",
                     match="^all 1 requests failed; the first: ")

    def test_json_on_the_standard_output(self):
        result = self.ostro("bench", "throughput", "--engine_dir", self.engine, "--num_prompts",
                            "2", "--output_len", "2", "--input_len", "4", "--warm_up", "0",
                            "--json", "-")
        self.assertEqual(json.loads(result.out)["completed"], 2)


if __name__ == "__main__":
    ostro.main()
