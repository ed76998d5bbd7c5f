"""Builds that cannot be done and engines that cannot be run are refused.

One sentence with the values, the exit code of its kind, and nothing written.
Exit codes: 2 the input is wrong, 3 not in this build, 4 the machine failed.
"""

import json
import os
import resource
import shutil
import subprocess

import ostro
from ostro import GOLDEN

MIXTRAL = os.path.join(GOLDEN, "mixtral_5_experts_top3")


class BuildFlags(ostro.BadInput):
    def build_refused(self, *flags, **kw):
        return self.refused(
            "build",
            "--model_dir",
            MIXTRAL,
            "--output_dir",
            self.path("engine"),
            "--log_level",
            "warning",
            *flags,
            **kw,
        )

    def test_mappings(self):
        for flags, text in {
            "--tp_size 3": "tp_size 3 does not divide the 4 attention heads",
            "--tp_size 0": "--tp_size is 0 and --pp_size is 1; both must be at least 1",
            "--pp_size 3": "pp_size 3 is more than the 2 layers: every stage needs one",
            "--world_size 4 --tp_size 2": "--world_size is 4, but tp_size 2 x pp_size 1 is 2",
            "--tp_size 2 --moe_ep_size 2": "moe_ep_size 2 does not divide the 5 experts",
            "--tp_size 4 --moe_tp_size 2 --moe_ep_size 1": "moe_tp_size 2 x moe_ep_size 1 is not "
            "tp_size 4",
        }.items():
            with self.subTest(flags):
                self.build_refused(*flags.split(), text=text)

    def test_not_built_yet(self):
        for flag in (
            "--int8_kv_cache",
            "--use_smooth_quant",
            "--per_group",
        ):
            with self.subTest(flag):
                message = self.build_refused(flag, code=3)
                self.assertRegex(
                    message,
                    "^--[a-z0-9_]+ is not built yet: weights are float32, float16, bfloat16, "
                    "fp8, int8 or int4, the KV cache float32, float16, bfloat16 or fp8$",
                )

    def test_values(self):
        for flags, text in {
            "--dtype int8": 'dtype is "int8"; it must be float32, float16 or bfloat16',
            "--target tpu": '--target is "tpu"; it must be neutral, cpu or cuda',
            "--workers 0": "--workers is 0; it must be at least 1",
            "--max_batch_size 0": "max_batch_size is 0; it must be at least 1",
            "--tokens_per_block 48": "tokens_per_block is 48; it must be a power of two, 8 or more",
            "--embedding_sharding_dim 2": "--embedding_sharding_dim is 2; it must be 0 "
            "(vocabulary) or 1 (hidden)",
            "--moe_renorm_mode SOFT": '--moe_renorm_mode is "SOFT"; it must be RENORMALIZE or NONE',
            "--n_layer 1": "%s has weights: --preset and the shape flags (--n_layer, ...) are for "
            "dummy engines" % MIXTRAL,
        }.items():
            with self.subTest(flags):
                self.build_refused(*flags.split(), text=text)

    def test_tune_without_a_gpu(self):
        self.build_refused(
            "--tune",
            code=3,
            env={**ostro.environment(), "CUDA_VISIBLE_DEVICES": ""},
            match="^--tune measures on the GPU that the engine is for: (this build has no CUDA "
            "backend; it has: cpu|there is no .*)$",
        )
        self.assertEqual(os.listdir(self.dir), [])

    def test_tune_for_a_cpu(self):
        self.build_refused(
            "--tune",
            "--target",
            "cpu",
            text="--tune measures on a GPU, but --target is cpu",
        )

    def test_preset(self):
        self.refused(
            "build",
            "--preset",
            "mixtral-9x9b",
            "--output_dir",
            self.path("engine"),
            text='preset is "mixtral-9x9b"; there are: mixtral-8x7b mixtral-8x22b llama-7b',
        )

    def test_numbers(self):
        for flag, value in (("--tp_size", "two"), ("--tp_size", "1.5"), ("--rotary_base", "x")):
            with self.subTest(value):
                self.build_refused(
                    flag,
                    value,
                    match=r"^(?=.*%s)(?=.*%s).*; see ostro build --help$" % (flag, value),
                )


def limit_file_size():
    """Writes beyond 50 KB fail; restore_signals=False leaves SIGXFSZ ignored, as Python has it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def contents(directory):
    found = {}
    for name in os.listdir(directory):
        with open(os.path.join(directory, name), "rb") as f:
            found[name] = f.read()
    return found


class OutputDirectories(ostro.BadInput):
    def build_refused(self, output, **kw):
        return self.refused(
            "build", "--model_dir", MIXTRAL, "--output_dir", output, "--log_level", "warning", **kw
        )

    def test_below_a_file(self):
        file = self.write("file", "x")
        self.build_refused(
            os.path.join(file, "engine"),
            match="^cannot write the engine to %s/engine: Not a directory.*; choose "
            "another --output_dir$" % file,
        )

    def test_a_file(self):
        file = self.write("file", "x")
        self.build_refused(file, text="--output_dir %s is a file; name a directory" % file)

    def test_a_directory_of_something_else(self):
        os.mkdir(self.path("home"))
        self.write("home/notes.txt", "x")
        self.build_refused(
            self.path("home"),
            match="^--output_dir %s holds .*; nothing was changed: "
            "choose an empty or new directory$" % self.path("home"),
        )

    def test_the_checkpoint_itself(self):
        model = self.copy(MIXTRAL)
        self.refused(
            "build",
            "--model_dir",
            model,
            "--output_dir",
            model,
            "--log_level",
            "warning",
            match="^--output_dir %s holds a config.json that is not an engine's; nothing was "
            "changed: choose an empty or new directory$" % model,
        )

    def test_a_read_only_file_system(self):
        # Not even root can make a directory in /proc.
        self.build_refused(
            "/proc/engine",
            match="^cannot write the engine to /proc/engine: .*; choose " "another --output_dir$",
        )

    def test_without_permission(self):
        # Root may write everywhere, so another user tries it, with files that he can read.
        program = shutil.copy(ostro.binary(), self.path("ostro"))
        model = self.copy(MIXTRAL)
        os.mkdir(self.path("mine"))
        os.chmod(self.path("mine"), 0o555)
        os.chmod(self.dir, 0o755)
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        result = ostro.run_command(
            [
                program,
                "build",
                "--model_dir",
                model,
                "--output_dir",
                self.path("mine", "engine"),
                "--log_level",
                "warning",
            ],
            **user,
        )
        self.assertEqual(result.code, 2, str(result))
        self.assertEqual(
            result.err,
            "ostro: error: cannot write the engine to %s: Permission denied (errno "
            "13); choose another --output_dir\n" % self.path("mine", "engine"),
        )
        self.assertEqual(os.listdir(self.path("mine")), [])

    def test_full_disk(self):
        """Every disk is too small for 35 TB; that is found before a byte is written."""
        self.refused(
            "build",
            "--preset",
            "mixtral-8x22b",
            "--n_layer",
            "7000",
            "--output_dir",
            self.path("engine"),
            "--log_level",
            "error",
            code=4,
            match="^the engine takes 3[0-9]{13} bytes, but the disk of %s has only [0-9]+ free$"
            % self.path("engine"),
        )

    def test_disk_that_fills_while_writing(self):
        message = self.build_refused(
            self.path("engine"), code=4, preexec_fn=limit_file_size, restore_signals=False
        )
        self.assertRegex(message, r"^writing .*rank0.safetensors.*: File too large \(errno 27\)$")

    def test_a_failed_build_keeps_the_engine_that_is_there(self):
        engine = ostro.build(self.path("engine"), MIXTRAL)
        before = contents(engine)

        self.build_refused(engine, code=4, preexec_fn=limit_file_size, restore_signals=False)
        self.assertEqual(contents(engine), before)

    def test_a_killed_build_leaves_no_engine_and_is_tidied(self):
        engine = self.path("engine")
        big = ["build", "--preset", "llama-7b", "--n_layer", "2", "--output_dir", engine]
        process = subprocess.Popen(
            [ostro.binary(), *big],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ostro.environment(),
        )
        try:
            while not any(
                name.startswith(".engine.building-")
                and any(size for size in ostro.listing(self.path(name)).values() if size)
                for name in os.listdir(self.dir)
            ):
                self.assertIsNone(process.poll(), "it ended before it was killed")
        finally:
            process.kill()
            process.wait()
        self.assertFalse(os.path.exists(engine))
        ostro.build(engine, MIXTRAL)
        self.assertEqual(os.listdir(self.dir), ["engine"])


class Engines(ostro.BadInput):
    def setUp(self):
        super().setUp()
        self.engine = ostro.build(self.path("engine"), MIXTRAL, tp_size=2)
        self.config = os.path.join(self.engine, "config.json")
        self.ids = self.write("ids.csv", "1,5,9\n")

    def run_refused(self, *flags, engine=None, **kw):
        return self.refused(
            "run",
            "--engine_dir",
            engine or self.engine,
            "--input_file",
            self.ids,
            "--max_output_len",
            "4",
            "--output_csv",
            self.path("out.csv"),
            *flags,
            **kw,
        )

    def edit(self, **changes):
        config = {**ostro.read_json(self.config), **changes}
        with open(self.config, "w") as f:
            json.dump(config, f)

    def test_cut_short(self):
        path = os.path.join(self.engine, "rank1.safetensors")
        size = os.path.getsize(path)
        os.truncate(path, size - 1)
        text = (
            "%s has %d bytes, but config.json says %d: it was cut short or replaced; copy it again"
            % (path, size - 1, size)
        )
        self.run_refused(text=text)
        self.refused("inspect", "--engine_dir", self.engine, text=text)
        self.refused(
            "eval",
            "perplexity",
            "--engine_dir",
            self.engine,
            "--dataset",
            self.write("d.jsonl", '{"input_ids": [1, 2]}\n'),
            text=text,
        )

    def test_missing_rank_file(self):
        os.remove(os.path.join(self.engine, "rank1.safetensors"))
        self.run_refused(
            text="the engine %s lacks rank1.safetensors, one of the 2 files of its "
            "config.json: copy it again" % self.engine
        )

    def test_newer_format(self):
        self.edit(format_version=2)
        self.run_refused(
            text="%s was made by a newer Ostro, format 2; this program reads 1: use a newer "
            "Ostro or build the engine again" % self.config
        )

    def test_damaged_tactics(self):
        path = self.write("engine/tactics.json", "{}")
        text = '%s has no "device"' % path
        self.run_refused(text=text)
        self.refused("inspect", "--engine_dir", self.engine, text=text)

    def test_tactics_of_another_device(self):
        command = ["run", "--engine_dir", self.engine, "--input_file", self.ids]
        command += ["--max_output_len", "4", "--log_level", "warning"]
        without = self.ostro(*command)
        version = ostro.read_json(self.config)["ostro_version"]
        tactics = {"device": "some GPU", "ostro_version": version, "products": []}
        path = self.write("engine/tactics.json", json.dumps(tactics))
        result = self.ostro(*command)
        self.assertEqual(result.out, without.out)
        self.assertRegex(
            result.err,
            r"^\[ostro\] \[warning\] %s is not used: it was measured on some GPU by Ostro %s; this "
            "is .*, Ostro %s\n$" % (path, version, version),
        )
        inspected = self.ostro("inspect", "--engine_dir", self.engine)
        self.assertIn("measured on some GPU by Ostro %s\n" % version, inspected.out)
        # They are part of the engine, and go with it.
        ostro.build(self.engine, MIXTRAL)
        self.assertFalse(os.path.exists(path))

    def test_missing_directory(self):
        missing = self.path("nowhere")
        self.run_refused(
            engine=missing,
            text="there is no engine in %s: it has no config.json; `ostro "
            "build --output_dir %s` makes one" % (missing, missing),
        )

    def test_a_checkpoint_for_an_engine(self):
        self.run_refused(
            engine=MIXTRAL,
            text="%s/config.json belongs to a checkpoint, not to an engine: "
            "`ostro build` makes an engine from it" % MIXTRAL,
        )

    def test_a_foreign_directory(self):
        os.mkdir(self.path("other"))
        self.write("other/config.json", '{"a": 1}')
        self.run_refused(
            engine=self.path("other"),
            text='%s/config.json has no "format_version": it does '
            "not belong to an engine that Ostro built" % self.path("other"),
        )

    def test_config_cut_short(self):
        os.truncate(self.config, 40)
        self.run_refused(text="%s is not JSON: it goes wrong at byte 41 of 40" % self.config)

    def test_damaged_byte(self):
        path = os.path.join(self.engine, "rank1.safetensors")
        with open(path, "r+b") as f:
            f.seek(-100, os.SEEK_END)
            byte = f.read(1)[0]
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte ^ 1]))
        result = self.ostro("inspect", "--engine_dir", self.engine, "--verify", code=2)
        self.assertRegex(
            result.err,
            r"^ostro: error: the engine %s is damaged: the checksum of "
            r"rank1.safetensors \(\S+, config.json says \S+\) is wrong: copy or build it "
            r"again\n$" % self.engine,
        )
        self.assertNotIn("verified", result.out)

    def test_config_changed_after_the_build(self):
        limits = ostro.read_json(self.config)["limits"]
        limits["max_batch_size"] = 3
        self.edit(limits=limits)
        result = self.ostro("inspect", "--engine_dir", self.engine, "--verify", code=2)
        self.assertRegex(
            result.err,
            r"^ostro: error: config.json of the engine %s was changed after the "
            r"build: its checksum is \S+, it says \S+\n$" % self.engine,
        )

    def test_ranks_of_another_mapping(self):
        self.run_refused("--tp_size", "3", text="tp_size 3 does not divide the 4 attention heads")
        self.run_refused(
            "--moe_ep_size", "3", text="--moe_ep_size 3 does not divide the 2 ranks of --tp_size"
        )
        self.run_refused(
            "--pp_size", "3", text="pp_size 3 is more than the 2 layers: every stage needs one"
        )

    def test_results_that_cannot_be_written(self):
        result = self.ostro(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            self.ids,
            "--max_output_len",
            "4",
            "--output_csv",
            self.path("nowhere", "out.csv"),
            code=2,
        )
        self.assertRegex(
            result.err,
            "^ostro: error: cannot write .*/nowhere/out.csv: .*/nowhere: No such file or "
            r"directory \(errno 2\)\n$",
        )


if __name__ == "__main__":
    ostro.main()
