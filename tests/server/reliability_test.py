"""`ostro serve` under load and faults: a thousand streams, clients that vanish, a rank that dies, and
minutes of mixed work in flat memory. Figures are printed; docs/RELIABILITY.md keeps them.

OSTRO_SOAK_SECONDS sets the length of the soak (600)."""

import asyncio
import json
import os
import random
import signal
import time

import serving
import streams
from serving import ostro

STREAMS = 1000
SEED = 20261124


def processes(server):
    """The server and the ranks that it started."""
    pid = server.process.pid
    with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
        return [pid, *(int(p) for p in f.read().split())]


def resident_bytes(pids):
    total = 0
    for pid in pids:
        with open("/proc/%d/statm" % pid) as f:
            total += int(f.read().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")


def slope(points):
    """Least squares: the change of y for one of x."""
    n = len(points)
    mx, my = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    return sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)


def idle(m):
    return m["ostro_requests_running"] == 0 and m["ostro_requests_waiting"] == 0


class Reliability(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "tiny"))

    def start(self, **flags):
        server = serving.Server(self.engine, **{"max_connections": 4096, **flags})
        self.addCleanup(server.kill)
        return server

    def say(self, text):
        print("%s: %s" % (self.id().rsplit(".", 1)[1], text), flush=True)

    def assert_no_leak(self, server):
        """All slots are free, and so is every KV block that is not cached."""
        server.wait_for(lambda m: idle(m) and m["ostro_kv_blocks_used"] == 0, "nothing is held", 60)

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
            os.kill(processes(server)[1], signal.SIGKILL)
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

    def test_minutes_of_mixed_work_in_flat_memory(self):
        seconds = float(os.environ.get("OSTRO_SOAK_SECONDS", 600))
        server = self.start(max_batch_size=32, max_queue_size=256, read_timeout=2,
                            capacity_policy="max_utilization", max_tokens_in_paged_kv_cache=8192)
        pids = processes(server)
        rng = random.Random(SEED + 2)
        end = time.monotonic() + seconds
        samples = []
        counts = {}

        def count(what):
            counts[what] = counts.get(what, 0) + 1

        async def client():
            while time.monotonic() < end:
                kind = rng.random()
                try:
                    if kind < 0.6:
                        o = await streams.post(server.port, "/v1/completions", streams.random_body(rng))
                        count("complete" if o.done else "status %d" % o.status)
                    elif kind < 0.8:
                        await streams.post(server.port, "/v1/completions", streams.random_body(rng),
                                           leave_after=rng.randrange(1, 12))
                        count("left")
                    elif kind < 0.9:
                        messages = [{"role": "user", "content": " ".join(rng.choices(streams.WORDS, k=9))}]
                        o = await streams.post(server.port, "/v1/chat/completions", {
                            "messages": messages, "max_tokens": 24, "stream": rng.random() < 0.5})
                        count("chat" if o.done else "status %d" % o.status)
                    elif kind < 0.98:
                        bad = rng.choice([b"{", b"\xff" * 100, b"[" * 5000, b'{"prompt": NaN}',
                                          json.dumps({"prompt": "x", "temperature": -1}).encode(),
                                          json.dumps({"prompt": "x " * 100000}).encode()])
                        o = await streams.post(server.port, "/v1/completions", bad)
                        count("status %d" % o.status)
                    else:  # half a request, and nothing more
                        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                        writer.write(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
                        await asyncio.sleep(0.2)
                        writer.close()
                        count("half")
                except (ConnectionError, asyncio.IncompleteReadError) as e:
                    self.fail("a connection broke: %r" % e)

        async def watch():
            begin = time.monotonic()
            while time.monotonic() < end:
                samples.append((time.monotonic() - begin, resident_bytes(pids)))
                await asyncio.sleep(1)

        async def all_of_it():
            await asyncio.gather(watch(), *(client() for _ in range(24)))

        asyncio.run(all_of_it())
        self.assertEqual(set(counts), {"complete", "left", "chat", "half", "status 400"})
        self.assert_no_leak(server)
        descriptors = server.metrics()["process_open_fds"]
        settled = [(t, b) for t, b in samples if t > seconds / 5]
        per_minute = slope(settled) * 60
        self.say("%d s, %s; resident %.1f MB at first, %.1f after a fifth, %.1f at the end: %+.3f MB a minute; "
                 "%d descriptors" % (seconds, counts, samples[0][1] / 1e6, settled[0][1] / 1e6,
                                     settled[-1][1] / 1e6, per_minute / 1e6, descriptors))
        # 0.1 % of what is resident, a minute.
        self.assertLess(per_minute, settled[-1][1] / 1000)
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    ostro.main()
