"""`ostro serve` with many clients, clients that leave, stall or break rules, and its own end."""

import concurrent.futures
import ctypes
import json
import os
import signal
import socket
import struct
import threading
import time


import serving
from serving import PROMPT, ostro

LONG = {"prompt": PROMPT, "max_tokens": 1000, "temperature": 0, "ignore_eos": True}
SO_ATTACH_FILTER = 26  # of Linux; a classic BPF program of 8 bytes an instruction
IDLE = lambda m: m["ostro_requests_running"] == 0 and m["ostro_requests_waiting"] == 0


def received(s):
    """All that comes from a socket until its other end closes."""
    data = b""
    while True:
        try:
            chunk = s.recv(65536)
        except ConnectionResetError:
            return data
        if not chunk:
            return data
        data += chunk


class Clients(serving.Case):
    FLAGS = {"max_batch_size": 16}

    def test_50_at_once_get_what_each_gets_alone(self):
        bodies = []
        for i in range(50):
            bodies.append({
                "prompt": " ".join([PROMPT] * (1 + i % 7)) + " number %d" % i,
                "max_tokens": 5 + i % 30, "temperature": i % 3 * 0.5, "seed": i,
                "stop": ["the"] if i % 5 == 0 else None, "n": 1 + i % 2, "stream": i % 4 != 0})

        def texts(body):
            answer = self.server.post("/v1/completions", body)
            self.assertEqual(answer.status, 200, answer.text)
            parts = answer.events if body["stream"] else [answer.json]
            out = [""] * body["n"]
            for part in parts:
                for c in part["choices"]:
                    out[c["index"]] += c["text"]
            return out

        alone = [texts(b) for b in bodies]
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            together = list(pool.map(texts, bodies))
        self.assertEqual(together, alone)
        self.server.wait_for(IDLE, "all have ended")

    def test_a_client_that_leaves_frees_its_slot(self):
        before = self.server.metrics()
        for stream in (True, False):
            body = json.dumps({**LONG, "n": 4, "stream": stream}).encode()
            connection = self.server.connect()
            connection.request("POST", "/v1/completions", body)
            if stream:
                response = connection.getresponse()
                response.read(200)
                response.close()
            else:
                self.server.wait_for(lambda m: m["ostro_requests_running"] == 1, "it runs")
            connection.close()
            left = time.monotonic()
            self.server.wait_for(IDLE, "its slot is free")
            self.assertLess(time.monotonic() - left, 2)
        after = self.server.wait_for(
            lambda m: m["ostro_http_disconnects_total"] == before["ostro_http_disconnects_total"] + 2,
            "both are counted")
        key = 'ostro_requests_ended_total{outcome="cancelled"}'
        self.assertEqual(after[key] - before[key], 2)
        self.assertLess(after["ostro_output_tokens_total"] - before["ostro_output_tokens_total"], 8000)

    def test_a_reader_that_stops_is_cut_off_and_harms_nobody(self):
        server = serving.Server(self.engine, max_unsent_bytes=300000)
        self.addCleanup(server.kill)
        alone = server.complete().json["choices"]
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            lazy.connect(("127.0.0.1", server.port))
            body = json.dumps({**LONG, "n": 100, "stream": True, "logprobs": 20}).encode()
            lazy.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                         % (len(body), body))
            self.assertEqual(server.complete().json["choices"], alone)
            server.wait_for(lambda m: m["ostro_http_disconnects_total"] == 1 and IDLE(m), "it is cut off")
        self.assertEqual(server.stop(), 0)

    def test_a_client_that_vanishes_frees_its_slot(self):
        server = serving.Server(self.engine, write_timeout=1)
        self.addCleanup(server.kill)
        for stream in (True, False):
            body = json.dumps({**LONG, "n": 128, "stream": stream}).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as s:
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                server.wait_for(lambda m: m["ostro_requests_running"] == 1, "it runs")
                # From here on the client's kernel drops what comes, so nothing is acknowledged.
                drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
                s.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                             struct.pack("HL", 1, ctypes.addressof(drop_all)))
                server.wait_for(lambda m: m["ostro_http_disconnects_total"] == 2 - stream, "it is given up", 10)
            server.wait_for(IDLE, "its slot is free", 5)

    def test_what_is_no_request_is_answered_and_closed(self):
        def answer(data):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                s.sendall(data)
                return received(s)

        for data, status in ((b"hello\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"400"),
                             (b"GET / HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", b"431"),
                             (b"POST /tokenize HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
                             (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400")):
            got = answer(data)
            self.assertEqual(got.split(b" ")[1], status, got)
            error = json.loads(got.split(b"\r\n\r\n", 1)[1])["error"]
            self.assertEqual(error["type"], "invalid_request_error")
        # A body in chunks, the next request right behind it, and a client that does not wait.
        piece = b'{"prompt": "Hello"}'
        both = answer(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                      b"%x\r\n%s\r\n0\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
                      % (len(piece), piece))
        self.assertEqual(both.count(b"HTTP/1.1 200 OK"), 2, both)

    def test_bad_input_is_answered_and_harms_no_other_stream(self):
        body = {**LONG, "stream": True}
        alone = self.server.post("/v1/completions", body).text
        texts = lambda stream: [json.loads(e[6:])["choices"][0]["text"] for e in stream.split("\n\n")[:-2]]
        done = threading.Event()
        streams = []

        def keep_streaming():
            while not done.is_set():
                streams.append(self.server.post("/v1/completions", body).text)

        threads = [threading.Thread(target=keep_streaming) for _ in range(3)]
        for t in threads:
            t.start()
        try:
            self.bad_input()
        finally:
            done.set()
            for t in threads:
                t.join()
        for stream in streams:
            self.assertEqual(texts(stream), texts(alone))

    def bad_input(self):
        large = 10 << 20
        deep = 100000
        routes = "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"
        for route in routes:
            for bad in (b"\xff" * 100, b'{"prompt": "\xff"}', b'{"\xc3\x28": 1}', b'{"prompt": "\\ud800"}', b"\x00",
                        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
                        b'{"prompt": "x", "temperature": NaN}', b'{"temperature": Infinity}',
                        b'{"prompt": "x", "temperature": -1e400}', b'{"max_tokens": 1e400}',
                        b"[" * deep, b'{"prompt":' + b"[" * deep, b'{"a":' * deep,
                        b'{"messages":' + b"[" * deep + b"]" * deep + b"}",
                        b'{"prompt":' + b"[" * deep + b"]" * deep + b"}",
                        b'{"tokens":' + b"[" * deep + b"]" * deep + b"}",
                        b'{"prompt": "x", "logit_bias":' + b'{"1":' * deep + b"1" + b"}" * deep + b"}"):
                self.assert_error(self.server.post(route, bad), 400)
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                s.sendall(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (route.encode(), large))
                self.assertIn(b" 413 ", received(s)[:20])  # nothing of the body is waited for
            for head, part in ((b"Content-Length: %d\r\n\r\n" % large, b"x" * 65536),
                               (b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n")):
                with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                    s.sendall(b"POST %s HTTP/1.1\r\n%s" % (route.encode(), head))
                    for _ in range(large // 65536):
                        s.sendall(part)
                    self.assertIn(b" 413 ", received(s)[:20])
        for field, value in (("temperature", 1e308), ("temperature", -0.0001), ("top_p", 1.0001), ("top_p", -1),
                             ("top_k", 2**40), ("min_p", -1), ("max_tokens", 2**63), ("n", 10**9), ("seed", 2**64),
                             ("repetition_penalty", 0), ("presence_penalty", 1e30), ("logprobs", -1)):
            self.assert_error(self.server.post("/v1/completions", {"prompt": "x", field: value}), 400, field)
        # Breaks off in the middle of a body, by a reset.
        s = socket.create_connection(("127.0.0.1", self.server.port))
        s.sendall(b'POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"prompt')
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        s.close()


class Limits(serving.Case):
    FLAGS = {"max_batch_size": 1, "max_queue_size": 1, "request_timeout": 0.5, "read_timeout": 1,
             "max_connections": 8}

    def test_a_full_queue_and_a_time_limit(self):
        answers = []
        body = {**LONG, "n": 1}
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            for answer in pool.map(lambda _: self.server.post("/v1/completions", {**body, "max_tokens": 900}),
                                   range(6)):
                answers.append(answer)
        statuses = [a.status for a in answers]
        self.assertIn(429, statuses)
        for answer in answers:
            if answer.status == 429:
                self.assert_error(answer, 429, kind="rate_limit_error", match="queue is full")
                self.assertEqual(answer.headers["Retry-After"], "1")
            elif answer.status == 504:
                self.assert_error(answer, 504, kind="timeout_error")
            else:
                self.assertEqual(answer.status, 200)
        self.server.wait_for(IDLE, "all have ended")
        # Of a list of prompts either all are taken or none.
        answer = self.server.post("/v1/completions", {**LONG, "prompt": [PROMPT] * 40, "max_tokens": 900})
        self.assert_error(answer, 429, kind="rate_limit_error")
        self.server.wait_for(IDLE, "none is left")
        stream = self.server.post("/v1/completions", {**LONG, "n": 1, "prompt": [PROMPT, PROMPT][0],
                                                      "stream": True})
        if "[DONE]" not in stream.text:
            error = json.loads(stream.text.split("\n\n")[-2][len("data: "):])["error"]
            self.assertEqual(error["type"], "timeout_error")

    def test_a_slow_header_or_body_is_answered_and_closed(self):
        for data in (b"POST /tokenize HTTP/1.1\r\nHost", b"POST /tokenize HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                begin = time.monotonic()
                s.sendall(data)
                for _ in range(15):  # a byte now and then does not extend the time
                    s.sendall(b"x")
                    time.sleep(0.1)
                s.shutdown(socket.SHUT_WR)
                head, body = received(s).split(b"\r\n\r\n", 1)
                self.assertLess(time.monotonic() - begin, 8)
            self.assertTrue(head.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), head)
            self.assertIn(b"\r\nConnection: close", head)
            error = json.loads(body)["error"]
            self.assertEqual(error["type"], "timeout_error")
            self.assertRegex(error["message"], "did not arrive within 1000 ms")
        self.assertEqual(self.server.get("/health").status, 200)

    def test_connections_that_bring_nothing_are_closed_without_a_word(self):
        for data in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                begin = time.monotonic()
                s.sendall(data)
                got = received(s)
                self.assertLess(time.monotonic() - begin, 5)
            self.assertEqual(got.count(b"HTTP/1.1"), 1 if data else 0, got)

    def test_a_half_closed_connection_is_one_that_leaves(self):
        body = json.dumps({**LONG, "stream": True}).encode()
        whole = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        for data in (whole[:20], whole[:-5], whole):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as s:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                got = received(s)
            self.assertNotIn(b"[DONE]", got)
            self.server.wait_for(IDLE, "nothing is left of it")

    def test_too_many_connections(self):
        held = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(8)]
        self.addCleanup(lambda: [s.close() for s in held])
        time.sleep(0.2)
        answer = self.server.get("/health")
        self.assert_error(answer, 503, kind="service_unavailable_error", match="too many connections")
        self.assertEqual(answer.headers["Retry-After"], "1")
        for s in held:
            s.close()
        time.sleep(0.2)
        self.assertEqual(self.server.get("/health").status, 200)


class End(serving.Case):
    @classmethod
    def setUpClass(cls):
        ostro.Case.setUpClass.__func__(cls)
        cls.engine = ostro.build(cls.shared + "/tiny")

    def start(self, **flags):
        server = serving.Server(self.engine, **flags)
        self.addCleanup(server.kill)
        return server

    def stream(self, server, **fields):
        """A stream that has begun: (response, a thread that reads the rest into the list)."""
        connection, response = server.open("POST", "/v1/completions", {**LONG, "stream": True, **fields})
        self.addCleanup(connection.close)
        text = [response.read(300)]

        def rest():
            try:
                text.append(response.read())
            except Exception as e:  # noqa: BLE001 - the test looks at what it was
                text.append(e)

        reader = threading.Thread(target=rest)
        reader.start()
        return text, reader

    def test_sigterm_finishes_what_runs_and_takes_no_more(self):
        server = self.start()
        idle = server.connect()
        self.addCleanup(idle.close)
        idle.request("GET", "/health")
        idle.getresponse().read()
        text, reader = self.stream(server, n=8, max_tokens=100)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with self.assertRaises(OSError):
            server.get("/health")
        reader.join(300)  # a minute and more with a sanitizer
        self.assertFalse(reader.is_alive())
        whole = b"".join(text).decode()
        self.assertTrue(whole.endswith("data: [DONE]\n\n"), whole[-300:])
        self.assertEqual(whole.count('"finish_reason":"length"'), 8)
        self.assertEqual(server.process.wait(timeout=20), 0)

    def test_a_second_signal_ends_streams_with_an_error(self):
        server = self.start()
        text, reader = self.stream(server, n=64)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        reader.join(60)
        whole = b"".join(text).decode()
        error = json.loads(whole.split("\n\n")[-2][len("data: "):])["error"]
        self.assertEqual(error["code"], "shutting_down")
        self.assertEqual(server.process.wait(timeout=20), 0)

    def test_two_ranks_give_the_same_and_a_dead_rank_ends_streams(self):
        one = self.start()
        alone = one.complete(max_tokens=60).json["choices"]
        self.assertEqual(one.stop(), 0)
        server = self.start(tp_size=2)
        self.assertEqual(server.complete(max_tokens=60).json["choices"], alone)
        with open("/proc/%d/task/%d/children" % (server.process.pid, server.process.pid)) as f:
            ranks = [int(p) for p in f.read().split()]
        self.assertEqual(len(ranks), 1)
        text, reader = self.stream(server, n=64)
        killed = time.monotonic()
        os.kill(ranks[0], signal.SIGKILL)
        reader.join(60)
        self.assertLess(time.monotonic() - killed, 5)
        whole = b"".join(text).decode()
        error = json.loads(whole.split("\n\n")[-2][len("data: "):])["error"]
        self.assertEqual(error, {"message": "the engine has stopped", "type": "server_error",
                                 "param": None, "code": None})
        self.assertEqual(server.process.wait(timeout=20), 4)
        self.assertIn("killed", server.errors())

    def test_two_ranks_drain(self):
        server = self.start(tp_size=2)
        text, reader = self.stream(server, max_tokens=100)
        server.process.send_signal(signal.SIGTERM)
        reader.join(300)
        self.assertTrue(b"".join(text).endswith(b"data: [DONE]\n\n"))
        self.assertEqual(server.process.wait(timeout=20), 0)

    def test_flags_that_are_wrong(self):
        def refused(match, **flags):
            args = ostro.flags_of({"engine_dir": self.engine, "tokenizer_dir": ostro.TINY, **flags})
            self.refused("serve", *args, match=match)

        refused("^--capacity_policy is", capacity_policy="x")
        refused("^--read_timeout is -1", read_timeout=-1)
        refused("^--max_queue_size is -1", max_queue_size=-1)
        refused("API key is empty", api_key="")
        refused("^cannot read the key file", api_key_file=self.path("none"))
        refused("^cannot listen on 127.0.0.1:", host="127.0.0.1", port=self.taken_port())

    def taken_port(self):
        s = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(s.close)
        return s.getsockname()[1]


if __name__ == "__main__":
    ostro.main()
