"""Ranks under mpirun and ranks that Ostro starts by itself: the same tokens, and a clean end.

The wrong number of ranks, and a rank that is killed, end with one message within five seconds.
"""

import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

import ostro
from ostro import GOLDEN
from pipeline_test import Traced

STEPS = 24
DEADLINE_S = 5


def mpirun(ranks):
    return ["mpirun", "-n", str(ranks), "--oversubscribe", "--allow-run-as-root"]


class SameTokens(ostro.Case):
    """tp.same_tokens under mpirun."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.one = ostro.build(os.path.join(cls.shared, "one"))
        cls.prompts = ostro.golden_prompts(4)

    def check(self, ranks, **flags):
        path = self.path("reference.npy")
        want = self.generate(self.one, self.prompts, STEPS, output_logits_npy=path, threads=1)
        logits = ostro.Npy(path)
        engine = ostro.build(self.path("engine"), **flags)
        got = self.generate(engine, self.prompts, STEPS, launcher=mpirun(ranks), threads=1)
        equal = [
            self.assert_same_tokens(got[i], want[i], lambda s, i=i: logits.row(i, s))
            for i in range(len(want))
        ]
        self.assertTrue(any(equal))
        # The transport does not change a bit: sums are in rank order everywhere.
        for name, launcher in {"mpi": mpirun(ranks), "local": ()}.items():
            self.generate(
                engine,
                self.prompts,
                2,
                launcher=launcher,
                threads=1,
                output_logits_npy=self.path(name),
            )
        self.assertEqual(ostro.Npy(self.path("mpi")).values, ostro.Npy(self.path("local")).values)

    def test_tp4(self):
        self.check(4, tp_size=4)

    def test_tp2_pp2(self):
        self.check(4, tp_size=2, pp_size=2)

    def test_ep2(self):
        self.check(2, tp_size=2, moe_ep_size=2)

    def test_the_seeds_line(self):
        os.symlink(ostro.TINY, self.path("Mixtral-8x7B-v0.1"))
        ostro.build(self.path("engines", "mixtral", "TP"), dtype="auto", world_size=2, tp_size=2)
        line = (
            "mpirun -n 2 OSTRO run --engine_dir ./engines/mixtral/TP --tokenizer_dir "
            './Mixtral-8x7B-v0.1 --max_output_len 8 --input_text "I love french quiche"'
        )
        env = {
            **ostro.environment(),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
        }
        result = ostro.run_command(
            ["bash", "-c", line.replace("OSTRO", ostro.binary())], cwd=self.dir, env=env
        )
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(
            result.out,
            'Input [Text 0]: "<s> I love french quiche"\n'
            'Output [Text 0 Beam 0]: "ri, in esse caso,"\n',
        )

    def test_only_rank_0_prints(self):
        engine = ostro.build(self.path("engine"), tp_size=2)
        args = [
            "run",
            "--engine_dir",
            engine,
            "--tokenizer_dir",
            ostro.TINY,
            "--max_output_len",
            8,
            "--input_text",
            "I love french quiche",
        ]
        result = ostro.run_command([*mpirun(2), ostro.binary(), *args])
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(result.out, self.ostro(*args).out)
        self.assertEqual(result.out.count("Input [Text 0]"), 1)


class Pipeline(Traced):
    def test_stages_work_on_different_steps(self):
        one = self.generate(self.engine, self.prompts, 40, threads=1)
        ids, _, ranks = self.trace(launcher=mpirun(2), pp_size=2)
        self.assertEqual(ids, one)
        self.check_stages(ranks, 2)
        self.check_overlap(ranks, 2)


class WrongNumber(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = os.path.join(GOLDEN, "llama_dense")
        cls.two = ostro.build(os.path.join(cls.shared, "two"), folder, tp_size=2)
        cls.one = ostro.build(os.path.join(cls.shared, "one"), folder)

    def check(self, started, wanted, engine, *flags):
        csv = self.write("p.csv", "1,5\n")
        command = [
            ostro.binary(),
            "run",
            "--engine_dir",
            engine,
            "--input_file",
            csv,
            "--max_output_len",
            "4",
            *flags,
        ]
        result = ostro.run_command([*mpirun(started), *command])
        self.assertEqual(result.code, 2, str(result))
        self.assertEqual(result.out, "")
        ours = [l for l in result.err.splitlines() if l.startswith("ostro:")]
        self.assertEqual(
            ours,
            [
                "ostro: error: the engine needs %d rank%s, mpirun started %d; run: "
                "mpirun -n %d %s"
                % (wanted, "" if wanted == 1 else "s", started, wanted, " ".join(command))
            ],
        )
        # And the command in the message works.
        again = ostro.run_command([*mpirun(wanted), *command])
        self.assertEqual(again.code, 0, str(again))

    def test_too_many(self):
        self.check(3, 2, self.two)

    def test_too_few(self):
        self.check(1, 2, self.two)

    def test_one_is_wanted(self):
        self.check(2, 1, self.one)

    def test_flags_decide(self):
        self.check(2, 4, self.two, "--pp_size", "2")


def processes():
    """pid -> parent of every process that is not a zombie."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as f:
                state, parent = f.read().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(pid)] = int(parent)
    return found


def below(root):
    """The living descendants of a process, youngest last."""
    found, all_processes = [], processes()
    level = [root]
    while level:
        level = sorted(p for p, parent in all_processes.items() if parent in level)
        found += level
    return found


def is_ours(pid):
    try:
        return os.path.samefile("/proc/%d/exe" % pid, ostro.binary())
    except OSError:
        return False


class Death(ostro.Case):
    """A rank that is killed in the middle of a long run."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"), tp_size=2, pp_size=2)

    def kill(self, choose, launcher=(), sig=signal.SIGKILL):
        """Starts four ranks, kills the one that choose(pids of our program, the main's) names.

        Returns the exit code, stderr, and what was killed.
        """
        csv = self.write("p.csv", "".join("1,%d\n" % (300 + i) for i in range(64)))
        with open(self.path("out"), "w") as out, open(self.path("err"), "w") as err:
            main = subprocess.Popen(
                [
                    *launcher,
                    ostro.binary(),
                    "run",
                    "--engine_dir",
                    self.engine,
                    "--input_file",
                    csv,
                    "--end_id",
                    "-1",
                    "--max_output_len",
                    "1000",
                    "--threads",
                    "1",
                ],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=ostro.environment(),
                # What a shell starts behind `&` ignores it, and so does all that it starts.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        pids = []
        try:
            # Rank 0 prints the prompts once all ranks have the engine; then let some steps go.
            self.wait(lambda: os.path.getsize(self.path("out")) > 0, 60, "a start")
            time.sleep(0.5)
            self.assertIsNone(main.poll(), "it ended before it was killed")
            pids = [p for p in [main.pid, *below(main.pid)] if is_ours(p)]
            self.assertEqual(len(pids), 4)
            victim = choose(pids)
            os.kill(victim, sig)
            begin = time.monotonic()
            code = main.wait(timeout=30)
            self.assertLess(time.monotonic() - begin, DEADLINE_S)
            self.wait(
                lambda: not set(pids) & set(processes()),
                DEADLINE_S - (time.monotonic() - begin),
                "the end of every rank",
            )
        finally:
            for pid in [main.pid, *pids]:
                if pid in processes():
                    os.kill(pid, signal.SIGKILL)
            main.wait()
        with open(self.path("err")) as f:
            return code, f.read(), victim

    def wait(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "no " + what)
            time.sleep(0.02)

    def test_own_rank_1(self):
        code, err, victim = self.kill(lambda pids: pids[1])
        self.assertEqual(code, 4)
        self.assertEqual(
            err, "ostro: error: rank 1 (pid %d) was killed by signal 9 (Killed)\n" % victim
        )

    def test_own_last_rank(self):
        code, err, victim = self.kill(lambda pids: pids[3])
        self.assertEqual(code, 4)
        self.assertEqual(
            err, "ostro: error: rank 3 (pid %d) was killed by signal 9 (Killed)\n" % victim
        )

    def test_own_rank_that_crashes(self):
        code, err, victim = self.kill(lambda pids: pids[2], sig=signal.SIGSEGV)
        self.assertEqual(code, 4)
        self.assertEqual(
            err,
            "ostro: error: rank 2 (pid %d) was killed by signal 11 "
            "(Segmentation fault)\n" % victim,
        )

    def test_own_rank_0(self):
        code, err, _ = self.kill(lambda pids: pids[0])
        self.assertEqual(code, -signal.SIGKILL)
        self.assertEqual(err, "")

    def test_interrupt(self):
        code, err, _ = self.kill(lambda pids: pids[0], sig=signal.SIGINT)
        self.assertEqual(code, -signal.SIGINT)
        self.assertEqual(err, "")

    def rank_of(self, pid):
        with open("/proc/%d/environ" % pid, "rb") as f:
            for entry in f.read().split(b"\0"):
                if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                    return int(entry.split(b"=")[1])
        self.fail("process %d has no rank" % pid)

    def check_mpi(self, rank):
        code, err, _ = self.kill(
            lambda pids: next(p for p in pids if self.rank_of(p) == rank), mpirun(4)
        )
        self.assertNotEqual(code, 0)
        self.assertRegex(err, r"\brank %d\b" % rank)
        self.assertRegex(err, r"signal 9")

    def test_mpi_rank_0(self):
        self.check_mpi(0)

    def test_mpi_rank_2(self):
        self.check_mpi(2)


class FailureOfARank(ostro.Case):
    """A rank that finds something wrong: one message, and the code of the error."""

    def test_a_refusal_on_rank_0_ends_all(self):
        folder = os.path.join(GOLDEN, "llama_dense")
        engine = ostro.build(self.path("engine"), folder, tp_size=2)
        csv = self.write("p.csv", "1,99\n")
        args = ["run", "--engine_dir", engine, "--input_file", csv, "--max_output_len", "4"]
        text = "prompt 0: token 1 of the prompt is 99; the vocabulary has ids 0 to 63"
        own = self.ostro(*args, code=2)
        self.assertEqual(own.err, "ostro: error: " + text + "\n")
        mpi = ostro.run_command([*mpirun(2), ostro.binary(), *args])
        self.assertEqual(mpi.code, 2, str(mpi))
        # mpirun adds its own lines about the rank that ended the others.
        self.assertEqual(
            len([l for l in mpi.err.splitlines() if "ostro" in l and l.endswith(text)]), 1, str(mpi)
        )
        self.assertEqual(own.out + mpi.out, "")


if __name__ == "__main__":
    ostro.main()
