#!/usr/bin/env python3
"""Kills rank 1 of two in the middle of its steps, and expects one line that names it, and the end.

    tools/kill_a_rank.py build/cuda/bin/ostro bench latency --dummy_weights ... --tp_size 2

The command must compute for a minute or more; it is run under mpirun -n 2. Prints what was said and
when; exit code 1 if that took more than 10 s, or if a process is left.
"""
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

LIMIT_S = 10
START_S = 90
RANK_1 = re.compile(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=1\0")


def pid_of_rank_1(mpirun):
    with open(f"/proc/{mpirun.pid}/task/{mpirun.pid}/children") as f:
        for pid in map(int, f.read().split()):
            with open(f"/proc/{pid}/environ", "rb") as environ:
                if RANK_1.search(environ.read()):
                    return pid
    return None


def wait_for(what, seconds, found):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.02)
    raise SystemExit(f"FAIL: {what} has not come within {seconds} s")


def main():
    env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with tempfile.NamedTemporaryFile("r") as err:
        job = subprocess.Popen(
            ["mpirun", "--oversubscribe", "-n", "2", *sys.argv[1:], "--log_level", "info"],
            env=env, stdout=subprocess.DEVNULL, stderr=open(err.name, "w"))
        said = lambda pattern: re.search(pattern, open(err.name, errors="replace").read(), re.M)
        try:
            wait_for("the KV cache of rank 1", START_S, lambda: said("rank 1: KV cache") or job.poll())
            time.sleep(2)
            pid = pid_of_rank_1(job)
            if job.poll() is not None or not pid:
                raise SystemExit("FAIL: it ended before it was killed:\n" + open(err.name).read())
            os.kill(pid, signal.SIGKILL)
            begin = time.monotonic()
            line = wait_for("a line that names rank 1", LIMIT_S, lambda: said("^ostro: error: .*rank 1.*$"))
            told = time.monotonic() - begin
            job.wait(timeout=LIMIT_S + 5)
            print(f"{line[0]} (after {told:.2f} s; the end after {time.monotonic() - begin:.2f} s)")
        finally:
            if job.poll() is None:
                job.kill()


main()
