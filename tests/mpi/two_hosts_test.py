"""One engine on two hosts: the same tokens as one rank, and an end with one message, never a hang,
when a rank, a host or the cable between them fails. The hosts are tests/mpi/hosts.py's.

What docs/multi-node.md tells its readers to type is what this test runs.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))

import hosts
import ostro
from ostro import TINY

STEPS = 16
ENGINE = hosts.HOME + "/engine"
TOKENIZER = hosts.HOME + "/tokenizer"
PROGRAM = hosts.HOME + "/bin/ostro"
MPIRUN = [
    "mpirun",
    "--allow-run-as-root",
    *("--hostfile", hosts.HOME + "/hostfile"),
    *("--mca", "plm_rsh_agent", "ssh -F %s/ssh/ssh_config" % hosts.HOME),
    # So that mpirun itself notices a host that is out of reach: 7 to 8 seconds after, when Ostro
    # has said which one.
    *("--mca", "oob_tcp_keepalive_time", "1"),
    *("--mca", "oob_tcp_keepalive_intvl", "1"),
    *("--mca", "oob_tcp_keepalive_probes", "7"),
]
# mpirun waits 3 seconds before it kills ranks that it has told to end, whether any is left or not.
KILL_AT_ONCE = ("--mca", "odls_base_sigkill_timeout", "0")
DEADLINE_S = 10  # from a failure to its message
END_S = 13  # to the end of every process: mpirun waits for what it has killed


def ranks():
    """The pid of each rank, as this test sees it."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/comm" % pid) as f:
                if f.read().strip() != "ostro":
                    continue
            with open("/proc/%s/environ" % pid, "rb") as f:
                rank = re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)\0", f.read())
        except OSError:
            continue
        if rank:
            found[int(rank[1])] = int(pid)
    return found


class Job:
    """An mpirun on node1 whose output grows in files."""

    def __init__(self, test, host, command):
        self.test = test
        self.paths = [test.path(name) for name in ("out", "err")]
        with open(self.paths[0], "w") as out, open(self.paths[1], "w") as err:
            self.process = subprocess.Popen(
                host.command(command), stdout=out, stderr=err, stdin=subprocess.DEVNULL
            )
        test.addCleanup(self.kill)

    def kill(self):
        for pid in ranks().values():
            os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            # What nsenter has started lives on without it.
            subprocess.run(["pkill", "-KILL", "-P", str(self.process.pid)], check=False)
            self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 5
        while ranks() and time.monotonic() < deadline:
            time.sleep(0.02)

    def out(self):
        return self.read(0)

    def err(self):
        return self.read(1)

    def read(self, i):
        with open(self.paths[i], errors="replace") as f:
            return f.read()

    def ours(self):
        """The lines of ostro itself on stderr."""
        return [l for l in self.err().splitlines() if l.startswith("ostro: ")]

    def wait_for(self, pattern, seconds, read=None):
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, (read or self.out)())
            if found:
                return found
            if time.monotonic() > deadline:
                self.test.fail("no %r within %s s: %s" % (pattern, seconds, self))
            time.sleep(0.02)

    def wait_for_end(self, seconds):
        """The exit code; every rank has to be gone as well."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None or ranks():
            if time.monotonic() > deadline:
                self.test.fail("ranks %s live after %s s: %s" % (ranks(), seconds, self))
            time.sleep(0.02)
        return self.process.returncode

    def __str__(self):
        return "exit code %s\nstdout: %s\nstderr: %s" % (
            self.process.poll(),
            self.out(),
            self.err(),
        )


class TwoHosts(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts = ostro.golden_prompts(4)
        # Both layouts of one checkpoint; hosts hold only what their ranks need.
        cls.engines = {
            name: ostro.build(os.path.join(cls.shared, name), **flags)
            for name, flags in {
                "one": {},
                "tp2pp2": {"tp_size": 2, "pp_size": 2},
                "pp2": {"pp_size": 2},
                "half": {"pp_size": 2, "dtype": "bfloat16"},
            }.items()
        }
        cls.network = hosts.Network(["node1", "node2"], ostro.binary())
        cls.node1, cls.node2 = cls.network["node1"], cls.network["node2"]
        prompts = os.path.join(cls.shared, "prompts.csv")
        with open(prompts, "w") as f:
            f.writelines(",".join(map(str, ids)) + "\n" for ids in cls.prompts)
        cls.node1.put([prompts], hosts.HOME)
        cls.node1.put(
            [os.path.join(TINY, n) for n in os.listdir(TINY) if n.startswith("token")], TOKENIZER
        )
        cls.give("tp2pp2")

    def setUp(self):
        super().setUp()
        self.assertEqual(ranks(), {})
        self.node2.mend()

    @classmethod
    def give(cls, name, node1=None, node2=None):
        """Each host gets its ranks' files of an engine, in place of what it had."""
        files = [f for f in os.listdir(cls.engines[name]) if f.startswith("rank")]
        half = len(files) // 2
        of_host = {cls.node1: node1 or range(half), cls.node2: node2 or range(half, len(files))}
        for host, numbers in of_host.items():
            names = ["config.json"] + ["rank%d.safetensors" % n for n in numbers]
            host.run(["rm", "-rf", ENGINE])
            host.put([os.path.join(cls.engines[name], n) for n in names], ENGINE)
        slots = "node1 slots=%d\nnode2 slots=%d\n" % (half, half)
        cls.node1.run(["cp", "/dev/stdin", hosts.HOME + "/hostfile"], input=slots.encode())
        cls.ranks = len(files)

    def start(self, *command, mpirun=()):
        return Job(self, self.node1, [*MPIRUN, *mpirun, "-n", self.ranks, PROGRAM, *command])

    def start_run(self, tokens, *flags, mpirun=()):
        args = ["run", "--engine_dir", ENGINE, "--input_file", hosts.HOME + "/prompts.csv"]
        args += ["--end_id", "-1", "--max_output_len", tokens, "--threads", "1", *flags]
        return self.start(*args, mpirun=mpirun)

    def start_long_run(self, *flags):
        """Ranks in the middle of a computation that takes much longer than the test."""
        job = self.start_run(1000, *flags)
        job.wait_for(r"Input \[Text %d\]" % (len(self.prompts) - 1), 60)
        self.assertEqual(len(ranks()), self.ranks, str(job))
        time.sleep(0.5)
        return job

    def check_message(self, job, begin, message, seconds=DEADLINE_S):
        """One line of Ostro's in time, then everything ends.

        Of rank 0's death every rank that mpirun leaves the time says the same.
        """
        job.wait_for(message, seconds - (time.monotonic() - begin), job.err)
        code = job.wait_for_end(END_S - (time.monotonic() - begin))
        self.assertNotEqual(code, 0, str(job))
        lines = job.ours()
        self.assertEqual(len(set(lines)), 1, str(job))
        if not message.startswith("rank 0 "):
            self.assertEqual(len(lines), 1, str(job))
        self.assertRegex(lines[0], "^ostro: error: " + message + "$")
        return code

    def check_refused(self, job, message, code=2):
        self.assertEqual(job.wait_for_end(30), code, str(job))
        self.assertEqual(len(job.ours()), 1, str(job))
        self.assertRegex(job.ours()[0], "^ostro: error: " + message + "$")
        self.assertEqual(job.out(), "")

    def request(self, host, port, tokens):
        """Streams a completion from `host`; the lines are in the file that is returned."""
        body = {"prompt": "A fast web server", "max_tokens": tokens, "stream": True}
        body.update({"ignore_eos": True, "temperature": 0})
        script = (
            "import sys, urllib.request\n"
            "r = urllib.request.Request(sys.argv[1], sys.argv[2].encode(),"
            " {'Content-Type': 'application/json'})\n"
            "for line in urllib.request.urlopen(r, timeout=60):\n"
            "    print(line.decode().strip(), flush=True)\n"
        )
        url = "http://node1:%d/v1/completions" % port
        path = self.path("stream")
        with open(path, "w") as out:
            client = subprocess.Popen(
                host.command(["python3", "-c", script, url, json.dumps(body)]),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.addCleanup(client.wait)
        self.addCleanup(client.kill)
        return client, path

    # What works.

    def reference(self, tokens):
        path = self.path("reference.npy")
        want = self.generate(
            self.engines["one"], self.prompts, tokens, output_logits_npy=path, threads=1
        )
        return want, ostro.Npy(path)

    def check_same_tokens(self):
        want, logits = self.reference(STEPS)
        job = self.start_run(
            STEPS,
            *("--output_csv", hosts.HOME + "/out.csv"),
            mpirun=("--mca", "btl_base_verbose", "100"),
        )
        self.assertEqual(job.wait_for_end(60), 0, str(job))
        with open(self.path("out.csv"), "w") as f:
            f.write(self.node1.run(["cat", hosts.HOME + "/out.csv"]))
        got = ostro.read_csv(self.path("out.csv"))
        equal = [
            self.assert_same_tokens(got[i], want[i], lambda s, i=i: logits.row(i, s))
            for i in range(len(want))
        ]
        self.assertTrue(any(equal))
        return job

    def test_tp2_inside_pp2_across(self):
        self.give("tp2pp2")
        self.assertEqual(
            self.node2.run(["ls", ENGINE]).split(),
            ["config.json", "rank2.safetensors", "rank3.safetensors"],
        )
        job = self.check_same_tokens()
        # Open MPI tells which way it has found to each process: TCP across, memory inside a host.
        self.assertRegex(job.err(), r"btl: tcp: .*10\.77\.0\.")

    def test_pp2_across(self):
        self.give("pp2")
        self.check_same_tokens()
        self.give("tp2pp2")

    def test_hosts_share_no_memory(self):
        job = self.start_long_run()
        namespaces = {}
        for rank, pid in ranks().items():
            host = self.node1 if rank < 2 else self.node2
            for kind in ("ipc", "mnt", "net", "pid", "uts"):
                own = os.readlink("/proc/%d/ns/%s" % (pid, kind))
                self.assertEqual(own, os.readlink("/proc/%d/ns/%s" % (host.pid, kind)))
                namespaces.setdefault(kind, set()).add(own)
        self.assertEqual({kind: len(s) for kind, s in namespaces.items()}, dict.fromkeys(namespaces, 2))
        # What is shared lies in each host's own /dev/shm and has the names of its two ranks; no
        # file that a rank has mapped for writing is one of another host's.
        shared = {}
        for host in (self.node1, self.node2):
            names = host.run(["ls", "/dev/shm"]).split()
            self.assertEqual(len(names), 2, names)
            for name in names:
                self.assertIn("." + host.name + ".", name)
        for rank, pid in ranks().items():
            with open("/proc/%d/maps" % pid) as f:
                for line in f:
                    fields = line.split()
                    if len(fields) > 5 and fields[1][3] == "s" and "w" in fields[1]:
                        shared.setdefault(rank // 2, set()).add((fields[3], fields[4]))
        self.assertTrue(shared[0] and shared[1], shared)
        self.assertEqual(shared[0] & shared[1], set())
        job.kill()

    def start_server(self, *flags):
        flags = [*flags, "--tokenizer_dir", TOKENIZER, "--host", "0.0.0.0", "--port", "0"]
        flags += ["--threads", "1"]
        job = self.start("serve", "--engine_dir", ENGINE, *flags)
        return job, int(job.wait_for(r"http://0\.0\.0\.0:(\d+)\n", 60)[1])

    def test_serve(self):
        job, port = self.start_server()
        client, path = self.request(self.node2, port, 8)
        self.assertEqual(client.wait(timeout=60), 0)
        with open(path) as f:
            events = [l[len("data: ") :] for l in f.read().splitlines() if l]
        self.assertEqual(events[-1], "[DONE]")
        text = "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])
        alone = self.ostro(
            "run",
            *("--engine_dir", self.engines["one"], "--tokenizer_dir", TINY),
            *("--input_text", "A fast web server", "--max_output_len", 8, "--end_id", "-1"),
        )
        self.assertEqual(re.search(r'Output [^:]*: "(.*)"\n', alone.out, re.S)[1], text.lstrip())

        # A rank dies in the middle of a stream: its client hears of it.
        client, path = self.request(self.node2, port, 900)
        self.wait(lambda: os.path.getsize(path) > 500, 30, "tokens")
        begin = time.monotonic()
        os.kill(ranks()[3], signal.SIGKILL)
        self.wait(lambda: client.poll() is not None, DEADLINE_S, "end of the stream")
        with open(path) as f:
            stream = f.read()
        self.assertIn('"error"', stream[-500:])
        self.assertNotIn("[DONE]", stream)
        self.check_message(job, begin, r"rank 3 on node2 \(pid \d+\) is gone: .*")

    def wait(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "no " + what)
            time.sleep(0.02)

    # What fails.

    def test_killed_rank(self):
        job = self.start_long_run()
        begin = time.monotonic()
        os.kill(ranks()[2], signal.SIGKILL)
        self.check_message(
            job, begin, r"rank 2 on node2 \(pid \d+\) is gone: it was killed or it crashed", 5
        )

    def test_killed_rank_0(self):
        job = self.start_long_run()
        begin = time.monotonic()
        os.kill(ranks()[0], signal.SIGKILL)
        self.check_message(
            job, begin, r"rank 0 on node1 \(pid \d+\) is gone: it was killed or it crashed", 5
        )

    def test_stopped_rank_of_an_idle_server(self):
        """Rank 0 waits for requests, not for ranks: its heartbeat ends it."""
        job, _ = self.start_server("--peer_timeout", "2")
        begin = time.monotonic()
        os.kill(ranks()[3], signal.SIGSTOP)
        code = self.check_message(
            job,
            begin,
            r"rank 3 on node2 \(pid \d+\) has been silent for 2 s, its host is not: it is stopped "
            "or hangs",
        )
        self.assertEqual(code, 4)

    def test_short_stop_is_no_failure(self):
        job = self.start_run(200)
        job.wait_for(r"Input \[Text %d\]" % (len(self.prompts) - 1), 60)
        for rank in (0, 3):  # both ends of a connection
            os.kill(ranks()[rank], signal.SIGSTOP)
        time.sleep(3)
        for pid in ranks().values():
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(job.wait_for_end(60), 0, str(job))
        self.assertEqual(job.ours(), [])

    def test_cut_cable(self):
        job = self.start_long_run()
        begin = time.monotonic()
        self.node2.cut()
        self.check_message(
            job,
            begin,
            r"node2 \(ranks 2, 3\) has been silent for 6 s: it is down, or the network between it "
            "and node1 is cut",
        )

    def test_mismatches(self):
        start = lambda *flags: self.start_run(4, *flags, mpirun=KILL_AT_ONCE)
        self.give("pp2", node2=[0])
        self.check_refused(
            start(),
            r"rank 1 on node2: the engine %s lacks rank1.safetensors, this rank's part: copy it to "
            "this host" % ENGINE,
        )
        self.node2.run(["rm", "-rf", ENGINE])
        self.check_refused(
            start(), r"rank 1 on node2: there is no engine in %s: .*" % ENGINE
        )
        self.node2.put(
            [os.path.join(self.engines["half"], n) for n in ("config.json", "rank1.safetensors")],
            ENGINE,
        )
        self.check_refused(
            start(),
            "rank 1 on node2 has an engine of bfloat16, rank 0 on node1 has an engine of float32: "
            "copy the same engine to all hosts",
        )
        self.give("pp2")
        self.check_refused(
            start("--peer_network", "10.78.0.0/16"),
            r'no interface of this host is in the network "10.78.0.0/16"; it has: eth0 10.77.0.1',
        )
        job = start("--peer_network", "10.77.0.0/24")
        self.assertEqual(job.wait_for_end(60), 0, str(job))
        # Another version on node2: the same program with another number in it.
        version = self.ostro("--version").out.split()[1]
        other = version[:-1] + "z"
        self.node2.run(["sed", "-i", "s/\\x00%s\\x00/\\x00%s\\x00/" % (version, other), PROGRAM])
        self.addCleanup(
            self.node2.run,
            ["sed", "-i", "s/\\x00%s\\x00/\\x00%s\\x00/" % (other, version), PROGRAM],
        )
        self.check_refused(
            start(),
            "rank 1 on node2 is Ostro %s, rank 0 on node1 is Ostro %s: install the same Ostro on "
            "all hosts" % (re.escape(other), re.escape(version)),
        )
        self.give("tp2pp2")

    def test_z_power_loss(self):
        """The last one: node2 does not come back."""
        self.give("pp2")
        job = self.start_long_run()
        begin = time.monotonic()
        self.node2.power_off()
        self.check_message(
            job,
            begin,
            r"rank 1 on node2 \(pid \d+\) has been silent for 6 s: it is stopped, its host is "
            "down, or the network between node2 and node1 is cut",
        )


if __name__ == "__main__":
    hosts.enter()
    ostro.main()
