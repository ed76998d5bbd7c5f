"""`ostro serve` under load and faults: a thousand streams, clients that vanish, a rank that dies.
Figures are printed; docs/RELIABILITY.md keeps them."""

import asyncio
import os
import random
import signal
import threading
import time

import streams
import under_load
from serving import ostro

STREAMS = 1000
SEED = 20261124


class Reliability(under_load.Case):
    def a_thousand_streams(self, ranks, bodies):
        """Runs the bodies one after the other, and then a thousand of them at once under either
        policy."""
        times = STREAMS // len(bodies)
        flags = {"max_queue_size": 2 * STREAMS, "tp_size": ranks}
        server = self.start(**flags)
        alone = asyncio.run(streams.post_all(server.port, "/v1/completions", bodies, concurrency=1))
        self.assertTrue(all(o.done and o.texts for o in alone))
        self.assertEqual(server.stop(), 0)
        for policy in ("guaranteed_no_evict", "max_utilization"):
            server = self.start(capacity_policy=policy, max_tokens_in_paged_kv_cache=8192, **flags)
            begin = time.monotonic()
            together = asyncio.run(streams.post_all(server.port, "/v1/completions", bodies * times))
            seconds = time.monotonic() - begin
            lost = [o for o in together if not isinstance(o, streams.Outcome) or not o.done]
            self.assertEqual(lost, [])
            unequal = sum(a.texts != b.texts for a, b in zip(alone * times, together))
            self.assertEqual((len(together), unequal), (STREAMS, 0))
            metrics = server.metrics()
            tokens = metrics["ostro_output_tokens_total"]
            self.say("%d ranks, %s: %d streams, %d tokens in %.1f s (%.0f/s), %d pauses" % (
                ranks, policy, STREAMS, tokens, seconds, tokens / seconds,
                metrics["ostro_pauses_total"]))
            self.assert_no_leak(server)
            self.assertEqual(server.stop(), 0)

    def test_a_thousand_streams_get_what_each_gets_alone(self):
        rng = random.Random(SEED)
        self.a_thousand_streams(1, [streams.random_body(rng) for _ in range(STREAMS)])

    # Each request four times, and shorter answers: alone a step of two ranks is all waiting.
    def test_a_thousand_streams_on_two_ranks(self):
        rng = random.Random(SEED)
        self.a_thousand_streams(2, [streams.random_body(rng, max_tokens=rng.choice([1, 8, 16]))
                                    for _ in range(STREAMS // 4)])

    def test_a_full_queue_refuses_and_loses_nothing(self):
        rng = random.Random(SEED)
        bodies = [streams.random_body(rng, n=1, max_tokens=24) for _ in range(STREAMS)]
        server = self.start(max_queue_size=64, max_batch_size=8)
        outcomes = asyncio.run(streams.post_all(server.port, "/v1/completions", bodies))
        refused = [o for o in outcomes if o.status == 429]
        self.assertTrue(refused)
        for outcome in refused:
            self.assertGreaterEqual(int(outcome.headers["retry-after"]), 1)
            self.assertEqual(outcome.error["type"], "rate_limit_error")
        self.assertTrue(all(o.done for o in outcomes if o.status == 200))
        self.assertEqual({o.status for o in outcomes}, {200, 429})
        self.say("%d of %d refused with 429" % (len(refused), STREAMS))
        self.assert_no_leak(server)

    def test_a_third_of_the_clients_vanish_and_the_others_notice_nothing(self):
        rng = random.Random(SEED + 1)
        bodies = [streams.random_body(rng, n=1, stop=None, max_tokens=64) for _ in range(300)]
        leavers = set(rng.sample(range(300), 90))
        for ranks in (1, 2):
            server = self.start(tp_size=ranks, max_batch_size=64)
            alone = asyncio.run(streams.post_all(server.port, "/v1/completions", bodies, concurrency=1))

            async def together():
                return await asyncio.gather(*(
                    streams.post(server.port, "/v1/completions", b,
                                 leave_after=rng.randrange(1, 40) if i in leavers else None)
                    for i, b in enumerate(bodies)))

            outcomes = asyncio.run(together())
            for i, (a, b) in enumerate(zip(alone, outcomes)):
                if i not in leavers:
                    self.assertTrue(b.done)
                    self.assertEqual(a.texts, b.texts)
            self.assert_no_leak(server)
            self.assertEqual(server.stop(), 0)

    def test_guides_that_compile_for_long_hold_up_no_known_one(self):
        server = self.start()

        def guided(regex, times):
            begin = time.monotonic()
            answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 4,
                                                     "guided_regex": regex})
            times.append(time.monotonic() - begin)
            return answer.status

        known, long = [], []
        self.assertEqual(guided("[a-z]{3}", []), 200)
        threads = [threading.Thread(target=guided, args=("%d%s" % (i, "(a|b|ab)?" * 900), long))
                   for i in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        for _ in range(5):
            self.assertEqual(guided("[a-z]{3}", known), 200)
        self.assertEqual(long, [])  # all this time
        self.assertEqual(server.stop(), 0)  # though some are compiled still
        for thread in threads:
            thread.join()
        self.say("known guides: %.2f s at most, beside others of %.1f s" % (max(known), max(long)))

    def test_a_rank_killed_while_the_server_drains(self):
        server = self.start(tp_size=2)
        rng = random.Random(SEED)
        bodies = [streams.random_body(rng, n=1, stop=None, max_tokens=600) for _ in range(32)]
        moments = {}

        async def strike():
            while True:  # until streams run
                await asyncio.sleep(0.2)
                if server.metrics()["ostro_requests_running"] > 0:
                    break
            server.process.send_signal(signal.SIGTERM)
            os.kill(under_load.processes(server)[1], signal.SIGKILL)
            moments["killed"] = time.monotonic()

        async def all_of_it():
            *outcomes, _ = await asyncio.gather(
                *(streams.post(server.port, "/v1/completions", b) for b in bodies), strike())
            moments["ended"] = time.monotonic()
            return outcomes

        outcomes = asyncio.run(all_of_it())
        for outcome in outcomes:
            if not outcome.done:
                self.assertIn(outcome.error["type"], ("server_error", "service_unavailable_error"))
        self.assertTrue(any(o.status == 200 and not o.done for o in outcomes))
        seconds = moments["ended"] - moments["killed"]
        self.say("all streams were told %.2f s after the kill" % seconds)
        self.assertLess(seconds, 5)
        self.assertEqual(server.process.wait(timeout=20), 4)


if __name__ == "__main__":
    ostro.main()
