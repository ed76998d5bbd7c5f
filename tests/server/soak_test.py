"""`ostro serve` in flat memory over minutes of mixed work. Figures are printed; docs/RELIABILITY.md
keeps them.

OSTRO_SOAK_SECONDS sets the length (600)."""

import asyncio
import json
import os
import random
import time

import streams
import under_load
from serving import ostro

SEED = 20261126


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


class Soak(under_load.Case):
    def test_minutes_of_mixed_work_in_flat_memory(self):
        seconds = float(os.environ.get("OSTRO_SOAK_SECONDS", 600))
        server = self.start(max_batch_size=32, max_queue_size=256, read_timeout=2,
                            capacity_policy="max_utilization", max_tokens_in_paged_kv_cache=8192)
        pids = under_load.processes(server)
        rng = random.Random(SEED)
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
