"""Ranks with a GPU each: the same tokens as one, however the GPUs are named, and one clear error where
there are too few of them or CUDA_VISIBLE_DEVICES is wrong. Needs two GPUs and NCCL."""

import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

import ostro

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
STEPS = 16
LIMIT_S = 60  # for all that a run does: starting CUDA in each rank takes seconds
# On one host nothing is called by ssh, but without one Open MPI 4 does not start.
MPIRUN = ["mpirun", "--oversubscribe", "--allow-run-as-root", "--mca", "plm_rsh_agent", "sh"]


def require_two_gpus():
    if not shutil.which("nvidia-smi"):
        gpus = 0
    else:
        listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE).stdout.decode()
        gpus = len(re.findall(r"^GPU ", listed, re.M))
    if gpus < 2:
        print("skipped: this machine has %d GPU, it takes two" % gpus)
        sys.exit(SKIPPED)


def visible(devices):
    return {**ostro.environment(), "CUDA_VISIBLE_DEVICES": devices}


class GpuRanks(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"))
        cls.prompts = ostro.golden_prompts(4)

    def setUp(self):
        super().setUp()
        with open(self.path("prompts.csv"), "w") as f:
            f.writelines(",".join(map(str, ids)) + "\n" for ids in self.prompts)

    def command(self, *flags, device="cuda"):
        return [
            *(ostro.binary(), "run", "--engine_dir", self.engine, "--device", device),
            *("--input_file", self.path("prompts.csv"), "--output_csv", self.path("out.csv")),
            *("--max_output_len", STEPS, "--end_id", -1, *flags),
        ]

    def on_each(self, devices, *flags):
        """A rank for each of `devices`, its CUDA_VISIBLE_DEVICES."""
        line = [*MPIRUN]
        for of_rank in devices:
            line += ["-n", 1, "env", "CUDA_VISIBLE_DEVICES=" + of_rank, *self.command(*flags), ":"]
        return ostro.run_command(line[:-1], timeout=LIMIT_S)

    def check_refused(self, result, codes, message):
        self.assertIn(result.code, codes if isinstance(codes, tuple) else (codes,), str(result))
        lines = [l for l in result.err.splitlines() if l.startswith("ostro: ")]
        self.assertEqual(len(lines), 1, str(result))
        self.assertRegex(lines[0], "^ostro: error: " + message + "$")
        self.assertEqual(result.out, "")

    def refused(self, devices, code, message, *flags):
        """Ranks that Ostro starts by itself."""
        result = ostro.run_command(self.command(*flags), timeout=LIMIT_S, env=visible(devices))
        self.check_refused(result, code, message)

    def test_same_tokens(self):
        want = self.generate(self.engine, self.prompts, STEPS)
        for comm in ("auto", "nccl"):
            for layout in ({"tp_size": 2}, {"pp_size": 2}):
                got = self.generate(self.engine, self.prompts, STEPS, device="cuda", comm=comm, **layout)
                self.assertEqual(got, want, (comm, layout))

    def test_each_rank_sees_a_gpu_of_its_own(self):
        """As Slurm binds."""
        want = self.generate(self.engine, self.prompts, STEPS)
        for comm in ("auto", "nccl"):
            result = self.on_each("01", "--tp_size", 2, "--comm", comm)
            self.assertEqual(result.code, 0, str(result))
            self.assertEqual(ostro.read_csv(self.path("out.csv")), want)

    def test_too_few_gpus(self):
        self.refused(
            "0,1",
            2,
            '4 ranks are on this host, where CUDA_VISIBLE_DEVICES "0,1" leaves 2 GPUs to this one: .*',
            *("--tp_size", 2, "--pp_size", 2),
        )

    def test_no_gpu_is_visible(self):
        for devices in ("", "99"):
            message = 'there is no GPU that CUDA may use: CUDA_VISIBLE_DEVICES is "%s"' % devices
            self.refused(devices, 3, "(rank 1: )?" + message, "--tp_size", 2)

    def test_the_cpu_takes_over_with_a_warning(self):
        command = self.command(device="auto")
        result = ostro.run_command(command, timeout=LIMIT_S, env=visible(""))
        self.assertEqual(result.code, 0, str(result))
        self.assertIn(
            "[ostro] [warning] the GPU is not used: there is no GPU that CUDA may use: "
            'CUDA_VISIBLE_DEVICES is ""\n',
            result.err,
        )

    def test_an_index_out_of_range_hides_what_follows(self):
        self.refused(
            "0,99",
            2,
            '2 ranks are on this host, where CUDA_VISIBLE_DEVICES "0,99" leaves 1 GPU to this one: .*',
            *("--tp_size", 2, "--comm", "nccl"),
        )

    def test_one_rank_sees_no_gpu(self):
        result = self.on_each(["0", ""], "--tp_size", 2)
        # Whichever rank is first to say so.
        of_rank_0 = 'rank 1 sees no GPU: CUDA_VISIBLE_DEVICES is "" there; .*'
        of_rank_1 = 'rank 1 on [^ ]+: there is no GPU that CUDA may use: CUDA_VISIBLE_DEVICES is ""'
        self.check_refused(result, (2, 3), "(%s|%s)" % (of_rank_0, of_rank_1))

    def test_two_ranks_on_one_gpu(self):
        self.check_refused(
            self.on_each("00", "--tp_size", 2, "--comm", "nccl"),
            2,
            "(rank 1 on [^ ]+: )?2 ranks are on this host, where CUDA_VISIBLE_DEVICES \"0\" leaves "
            "1 GPU to this one: .*",
        )
        self.check_refused(
            self.on_each(["0,1", "1,0"], "--tp_size", 2, "--comm", "nccl"),
            2,
            "(rank 1 on [^ ]+: )?ranks 0 and 1 would take the same GPU of .*",
        )
        for comm in ("nccl", "peer"):
            message = "--comm %s needs a GPU of its own for each rank; rank 0 shares its GPU" % comm
            self.refused("0", 2, message, "--tp_size", 2, "--share_gpus", "--comm", comm)


if __name__ == "__main__":
    require_two_gpus()
    ostro.main()
