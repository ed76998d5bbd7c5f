"""Two GPUs as those of two hosts, made of namespaces (hosts.py): NCCL talks over sockets, the tokens
are those of one CPU, and a rank that is killed is named. Needs two GPUs, NCCL and root."""

import os
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))

import hosts
import ostro
from gpu_ranks_test import require_two_gpus
from two_hosts_test import DEADLINE_S, END_S, ENGINE, PROGRAM, Job, ranks

STEPS = 16
OUT = hosts.HOME + "/out.csv"


class Corner:
    """Where mpirun runs, as a host for Job."""

    @staticmethod
    def command(command):
        return [str(word) for word in command]


class GpuTwoHosts(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"))
        cls.prompts = ostro.golden_prompts(4)
        csv = os.path.join(cls.shared, "prompts.csv")
        with open(csv, "w") as f:
            f.writelines(",".join(map(str, ids)) + "\n" for ids in cls.prompts)
        cls.network = hosts.Network(["node1", "node2"], ostro.binary(), sshd=False)
        files = [os.path.join(cls.engine, name) for name in os.listdir(cls.engine)]
        for host in cls.network.hosts.values():
            host.put([csv], hosts.HOME)
            host.put(files, ENGINE)

    def start(self, tokens, *flags, **environment):
        """A rank on each host, which has a GPU of its own."""
        line = ["mpirun", "--allow-run-as-root"]
        line += ["--mca", "plm", "rsh", "--mca", "plm_rsh_agent", self.network.agent]
        line += ["--mca", "plm_rsh_no_tree_spawn", 1]
        for rank, host in enumerate(self.network.hosts):
            variables = {"CUDA_VISIBLE_DEVICES": rank, **environment}
            if "LD_LIBRARY_PATH" in os.environ:  # NCCL may lie there
                variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
            line += [":"] * (rank > 0) + ["-n", 1, "--host", host, "env"]
            line += ["%s=%s" % pair for pair in variables.items()]
            line += [PROGRAM, "run", "--engine_dir", ENGINE, "--device", "cuda", "--log_level", "info"]
            line += ["--input_file", hosts.HOME + "/prompts.csv"]
            line += ["--max_output_len", tokens, "--end_id", -1, *flags]
        return Job(self, Corner, line)

    def check_same_tokens(self, layout, **environment):
        want = self.generate(self.engine, self.prompts, STEPS, device="cpu")
        job = self.start(STEPS, layout, 2, "--output_csv", OUT, NCCL_DEBUG="INFO", **environment)
        self.assertEqual(job.wait_for_end(60), 0, str(job))
        with open(self.path("out.csv"), "w") as f:
            f.write(self.network["node1"].run(["cat", OUT]))
        self.assertEqual(ostro.read_csv(self.path("out.csv")), want)
        self.assertRegex(job.out() + job.err(), "via NET/Socket")
        return job

    def test_tp2(self):
        job = self.check_same_tokens("--tp_size")
        self.assertRegex(
            job.err(), r"ranks 0, 1 talk over NCCL .*, sums too: they are on node1 and node2"
        )

    def test_pp2(self):
        self.check_same_tokens("--pp_size", NCCL_SHM_DISABLE=1, NCCL_P2P_DISABLE=1)

    def test_killed_rank(self):
        job = self.start(1000, "--tp_size", 2)
        job.wait_for(r"Input \[Text %d\]" % (len(self.prompts) - 1), 60)
        time.sleep(0.5)
        begin = time.monotonic()
        os.kill(ranks()[1], signal.SIGKILL)
        job.wait_for(r"rank 1 on node2 \(pid \d+\) is gone: it was killed", DEADLINE_S, job.err)
        self.assertNotEqual(job.wait_for_end(END_S - (time.monotonic() - begin)), 0, str(job))


if __name__ == "__main__":
    require_two_gpus()
    hosts.enter(sshd=False)
    ostro.main()
