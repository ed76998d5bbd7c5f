"""Servers of tiny-mixtral that are made to work hard."""

import os

import serving
from serving import ostro


def processes(server):
    """The server and the ranks that it started."""
    pid = server.process.pid
    with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
        return [pid, *(int(p) for p in f.read().split())]


def idle(m):
    return m["ostro_requests_running"] == 0 and m["ostro_requests_waiting"] == 0


class Case(ostro.Case):
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
