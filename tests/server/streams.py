"""A client for a thousand streams at once: asyncio over plain sockets, standard library only."""

import asyncio
import json
import random


class Outcome:
    """What came of a request: its status, the events' JSON, and whether [DONE] ended them."""

    def __init__(self):
        self.status = None
        self.headers = {}
        self.events = []
        self.body = b""
        self.done = False

    @property
    def texts(self):
        """{choice: text}"""
        texts = {}
        for event in self.events:
            for choice in event.get("choices", []):
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
        return texts

    @property
    def error(self):
        if self.events and "error" in self.events[-1]:
            return self.events[-1]["error"]
        return json.loads(self.body)["error"] if self.status != 200 else None


async def post(port, path, body, leave_after=None, slow=None):
    """Sends one request and reads all of its answer. With `leave_after`, closes the connection after
    that many events; with `slow`, sleeps as many seconds between reads."""
    outcome = Outcome()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                     % (path.encode(), len(data), data))
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        outcome.status = int(head[0].split(" ")[1])
        outcome.headers = {k.lower(): v for k, v in (l.split(": ", 1) for l in head[1:] if l)}
        chunked = outcome.headers.get("transfer-encoding") == "chunked"
        if not chunked:
            outcome.body = await reader.readexactly(int(outcome.headers["content-length"]))
            if outcome.headers["content-type"] == "application/json" and outcome.status == 200:
                outcome.events = [json.loads(outcome.body)]
                outcome.done = True
            return outcome
        pending = b""
        while size := int(await reader.readline(), 16):
            pending += await reader.readexactly(size)
            await reader.readexactly(2)
            *whole, pending = pending.split(b"\n\n")
            for event in whole:
                assert event.startswith(b"data: "), event
                if event == b"data: [DONE]":
                    outcome.done = True
                else:
                    outcome.events.append(json.loads(event[len(b"data: "):]))
            if leave_after is not None and len(outcome.events) >= leave_after:
                return outcome
            if slow:
                await asyncio.sleep(slow)
        return outcome
    finally:
        writer.close()


async def post_all(port, path, bodies, concurrency=None, **how):
    """Outcomes (or exceptions) of all bodies, in order; all at once, or `concurrency` at a time."""
    gate = asyncio.Semaphore(concurrency or len(bodies))

    async def one(body):
        async with gate:
            return await post(port, path, body, **how)

    return await asyncio.gather(*(one(b) for b in bodies), return_exceptions=True)


WORDS = ("a once upon time the little fox ran over green hill and saw an old king who had lost his crown "
         "near river so they walked together until night came").split()


def random_body(rng: random.Random, **fields):
    """A completion of a random prompt (1 to 60 words) with random settings; all of it reproducible."""
    body = {
        "prompt": " ".join(rng.choices(WORDS, k=rng.choice([1, 5, 12, 60]))),
        "max_tokens": rng.choice([1, 8, 24, 48]),
        "temperature": rng.choice([0, 0.7, 1.2]),
        "seed": rng.randrange(1 << 31),
        "stream": True,
        "ignore_eos": True,
        "user": "user%d" % rng.randrange(7),
    }
    extra = rng.randrange(6)
    if extra == 0:
        body["stop"] = rng.choice([["the"], [" and", "king"]])
    elif extra == 1:
        body["n"] = 2
    elif extra == 2:
        body["logprobs"] = 3
    elif extra == 3:
        body.update(presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1)
    elif extra == 4:
        body.update(top_k=20, top_p=0.9, min_p=0.02)
    return {**body, **fields}
