"""What the tests of `ostro serve` share: a server on a free loopback port, and a small client."""

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import ostro  # noqa: E402

PROMPT = "Once upon a time"


class Answer:
    def __init__(self, response, body):
        self.status = response.status
        self.headers = response.headers
        self.text = body.decode("utf-8")

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def events(self):
        """The JSON of a stream's events, which must end with [DONE]."""
        events = self.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""], events[-3:]
        assert all(e.startswith("data: ") for e in events[:-1]), events
        return [json.loads(e[len("data: ") :]) for e in events[:-2]]


class Server:
    """`ostro serve` of an engine; ends with the test even if that fails."""

    def __init__(self, engine, scheme="http", **flags):
        flags = {"host": "127.0.0.1", "port": 0, "tokenizer_dir": ostro.TINY, "threads": 1, **flags}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [ostro.binary(), "serve", "--engine_dir", engine, *ostro.flags_of(flags)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
            env=ostro.environment(),
        )
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline().decode() if ready else ""
        match = re.match(r"Serving (\S+) on (\w+)://127\.0\.0\.1:(\d+)$", line.strip())
        if not match or match.group(2) != scheme:
            errors = self.errors()
            self.kill()
            raise AssertionError("the server says %r; stderr: %s" % (line, errors))
        self.model, self.port = match.group(1), int(match.group(3))

    def errors(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=20)
        self.process.stdout.close()
        self.log.close()

    def stop(self, timeout=60):
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout)

    def connect(self, timeout=240):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def open(self, method, path, body=None, headers=None):
        """A response whose body has not been read: (connection, response)."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        return connection, connection.getresponse()

    def request(self, method, path, body=None, headers=None):
        connection, response = self.open(method, path, body, headers)
        try:
            return Answer(response, response.read())
        finally:
            connection.close()

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body, **kw):
        return self.request("POST", path, body, **kw)

    def complete(self, prompt=PROMPT, **fields):
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 16, **fields}
        answer = self.post("/v1/completions", body)
        assert answer.status == 200, answer.text
        return answer

    def metrics(self):
        """{name with labels: value}"""
        lines = self.get("/metrics").text.splitlines()
        return {n: float(v) for n, v in (l.rsplit(" ", 1) for l in lines if l[0] != "#")}

    def wait_for(self, condition, what, seconds=20):
        """Until condition(metrics) holds; returns them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            metrics = self.metrics()
            if condition(metrics):
                return metrics
            time.sleep(0.05)
        raise AssertionError("not within %d s: %s; metrics: %s" % (seconds, what, {
            name: value for name, value in self.metrics().items() if "bucket" not in name}))


class Case(ostro.Case):
    """Tests of one server, started with cls.FLAGS, of an engine built with cls.BUILD."""

    FLAGS = {}
    BUILD = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "tiny"), **cls.BUILD)
        cls.server = Server(cls.engine, **cls.FLAGS)
        cls.addClassCleanup(cls.server.kill)

    def assert_error(self, answer, status, param=None, kind="invalid_request_error", match=None):
        self.assertEqual(answer.status, status, answer.text)
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        error = answer.json["error"]
        self.assertEqual(list(error), ["message", "type", "param", "code"])
        self.assertEqual(error["type"], kind)
        self.assertEqual(error["param"], param)
        if match:
            self.assertRegex(error["message"], match)
        return error
