"""What is wrong is refused: one sentence with the values, the exit code of its kind, nothing written.

Exit codes: 2 the input is wrong, 3 not in this build, 4 the machine failed.
"""

import json
import os
import resource
import shutil
import struct
import subprocess

import ostro
from ostro import GOLDEN, TINY, Safetensors

MIXTRAL = os.path.join(GOLDEN, "mixtral_5_experts_top3")
LLAMA = os.path.join(GOLDEN, "llama_dense")
SHARDED = os.path.join(GOLDEN, "mixtral_sharded_f16")
Q = "model.layers.0.self_attn.q_proj.weight"


class BadInput(ostro.Case):
    def refused(self, *args, **kw):
        """Nothing may be written or left behind, in the test's directory."""
        before = ostro.listing(self.dir)
        message = super().refused(*args, cwd=self.dir, **kw)
        self.assertEqual(ostro.listing(self.dir), before)
        return message

    def copy(self, source, name="model"):
        return shutil.copytree(source, self.path(name))


class Checkpoints(BadInput):
    def build_refused(self, model, *flags, **kw):
        return self.refused("build", "--model_dir", model, "--output_dir", self.path("engine"),
                            "--log_level", "warning", *flags, **kw)

    def damaged(self, change, source=MIXTRAL, file="model.safetensors"):
        """A copy of a checkpoint whose file is `change`d: bytes in, bytes out."""
        model = self.copy(source)
        path = os.path.join(model, file)
        with open(path, "rb") as f:
            content = change(f.read())
        with open(path, "wb") as f:
            f.write(content)
        return model, path

    def with_header(self, change, source=MIXTRAL):
        model = self.copy(source)
        path = os.path.join(model, "model.safetensors")
        file = Safetensors(path)
        change(file.header)
        file.write(path)
        return model, path

    def with_config(self, source=MIXTRAL, drop=(), **changes):
        model = self.copy(source)
        path = os.path.join(model, "config.json")
        config = {**ostro.read_json(path), **changes}
        for key in drop:
            del config[key]
        with open(path, "w") as f:
            json.dump(config, f)
        return model, path

    # safetensors

    def test_truncated_in_the_data(self):
        model, path = self.damaged(lambda b: b[:-1000])
        self.build_refused(model, match=r"^%s: tensor \"\S+\" ends at byte \d+ of the data, the file "
                           r"has only \d+; it was cut short: copy or download it again$" % path)

    def test_truncated_in_the_header(self):
        model, path = self.damaged(lambda b: b[:100])
        self.build_refused(model, match=r"^%s says that its header has \d+ bytes, but the file has "
                           r"only 100; it was cut short: copy or download it again$" % path)

    def test_truncated_to_nothing(self):
        for size in (0, 7):
            with self.subTest(size):
                shutil.rmtree(self.path("model"), ignore_errors=True)
                model, path = self.damaged(lambda b: b[:size])
                self.build_refused(model, text="%s has %d bytes; a safetensors file has at least 8"
                                   % (path, size))

    def test_header_length_absurd(self):
        for length in (2**63 - 1, 2**64 - 1, 100_000_001):
            with self.subTest(length):
                shutil.rmtree(self.path("model"), ignore_errors=True)
                model, path = self.damaged(lambda b: struct.pack("<Q", length) + b[8:])
                self.build_refused(model, text="%s says that its header has %d bytes; at most "
                                   "100000000 are allowed, so it is no safetensors file"
                                   % (path, length))

    def test_header_length_too_short(self):
        model, path = self.damaged(lambda b: struct.pack("<Q", 50) + b[8:])
        self.build_refused(model, match=r"^%s: the safetensors header stops being JSON at its byte \d+$"
                           % path)

    def test_header_not_json(self):
        model, path = self.damaged(lambda b: struct.pack("<Q", 8) + b"nonsense")
        self.build_refused(model, match=r"^%s: the safetensors header stops being JSON at its byte \d+$"
                           % path)

    def offsets(self, header, name):
        return header[name]["data_offsets"]

    def test_offsets_overlap(self):
        names = {}

        def change(header):
            first, second = sorted((n for n in header if n != "__metadata__"),
                                   key=lambda n: header[n]["data_offsets"])[:2]
            names.update(first=first, second=second, at=header[second]["data_offsets"][0])
            header[second]["data_offsets"] = [x - 2 for x in header[second]["data_offsets"]]

        model, path = self.with_header(change)
        self.build_refused(model, text='%s: tensor "%s" starts at byte %d of the data and overlaps "%s", '
                           "which ends at %d" % (path, names["second"], names["at"] - 2,
                                                 names["first"], names["at"]))

    def test_offsets_leave_a_gap(self):
        model, path = self.damaged(lambda b: b + b"\0" * 6)
        self.build_refused(model, match=r"^%s has \d+ bytes of data, but its header describes only \d+$"
                           % path)

    def test_offsets_beyond_the_file(self):
        def change(header):  # the last one, so that no gap before another is found first
            begin, end = header["model.norm.weight"]["data_offsets"]
            header["model.norm.weight"]["data_offsets"] = [begin + 10**12, end + 10**12]

        model, path = self.with_header(change)
        self.build_refused(model, match=r'^%s: tensor "model.norm.weight" ends at byte 1000000\d+ of the '
                           r"data, the file has only \d+; it was cut short: copy or download it again$"
                           % path)

    def test_offsets_overflow(self):
        def change(header):
            header[Q]["data_offsets"] = [2**64 - 8, 2**64 - 1]

        model, path = self.with_header(change)
        self.build_refused(model, text='%s: tensor "%s": data_offsets holds %d, which is more than any '
                           "file has" % (path, Q, 2**64 - 8))

    def test_offsets_backwards(self):
        def change(header):
            header[Q]["data_offsets"].reverse()

        model, path = self.with_header(change)
        self.build_refused(model, match=r'^%s: tensor "%s" has data_offsets \[\d+,\d+\], which run '
                           r"backwards$" % (path, Q))

    def test_shape_overflow(self):
        def change(header):
            header[Q]["shape"] = [2**40, 2**40]

        model, path = self.with_header(change)
        self.build_refused(model, text='%s: tensor "%s" has shape [1099511627776,1099511627776], more '
                           "elements than any file holds" % (path, Q))

    def test_shape_against_bytes(self):
        def change(header):
            header[Q]["shape"][0] += 1

        model, path = self.with_header(change)
        self.build_refused(model, match=r'^%s: tensor "%s" has \d+ bytes between its data_offsets; BF16 '
                           r"\[\d+,\d+\] takes \d+$" % (path, Q))

    def test_unknown_dtype(self):
        def change(header):
            header[Q]["dtype"] = "F13"

        model, path = self.with_header(change)
        self.build_refused(model, match=r'^%s: tensor "%s" has dtype "F13"; known are F64, ' % (path, Q))

    def test_dtype_that_engines_do_not_hold(self):
        def change(header):
            header[Q]["dtype"] = "I16"

        model, path = self.with_header(change)
        self.build_refused(model, code=3, text='%s: tensor "%s" is I16; Ostro builds engines from F32, '
                           "F16 and BF16 weights" % (path, Q))

    def test_git_lfs_pointer(self):
        pointer = (b"version https://git-lfs.github.com/spec/v1\n"
                   b"oid sha256:%s\nsize 41943040\n" % (b"0" * 64))
        model, path = self.damaged(lambda b: pointer)
        self.build_refused(model, text="%s is a Git LFS pointer, not the weights: run `git lfs pull` in "
                           "its directory" % path)

    def test_git_lfs_pointer_of_a_pickle(self):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
        model, path = self.damaged(lambda b: pointer,
                                   os.path.join(GOLDEN, "mixtral_pytorch_bin"), "pytorch_model.bin")
        self.build_refused(model, match=r"^%s is a Git LFS pointer" % path)

    def test_truncated_pickle(self):
        for source, file in (("mixtral_pytorch_bin", "pytorch_model.bin"),
                             ("mixtral_consolidated_pth", "consolidated.00.pth")):
            with self.subTest(file):
                shutil.rmtree(self.path("model"), ignore_errors=True)
                model, path = self.damaged(lambda b: b[:-500], os.path.join(GOLDEN, source), file)
                message = self.build_refused(model)
                self.assertIn(path, message)
                self.assertRegex(message, "cut short|zip")

    # Which tensors and files

    def test_missing_shard(self):
        model = self.copy(SHARDED)
        os.remove(os.path.join(model, "model-00002-of-00003.safetensors"))
        self.build_refused(model, text="%s lacks model-00002-of-00003.safetensors of the 3 files that "
                           "model.safetensors.index.json lists: copy or download what is missing" % model)

    def test_index_alone(self):
        model = self.copy(SHARDED)
        for i in (1, 2, 3):
            os.remove(os.path.join(model, "model-0000%d-of-00003.safetensors" % i))
        self.build_refused(model, match="^%s lacks model-00001-of-00003.safetensors, .* of the 3 files "
                           % model)

    def test_shards_alone(self):
        model = self.copy(SHARDED)
        os.remove(os.path.join(model, "model.safetensors.index.json"))
        self.build_refused(model, match="^%s holds model-00001-of-00003.safetensors, .*, but none of "
                           "model.safetensors, .*: copy or download the file that is missing$" % model)

    def test_missing_tensor(self):
        def change(header):
            header["model.layers.0.self_attn.extra"] = header.pop(Q)

        model, _ = self.with_header(change)
        self.build_refused(model, text='%s holds no tensor "%s", which its config.json calls for '
                           "(2 layers, 5 experts)" % (model, Q))

    def test_tensor_that_would_be_ignored(self):
        model, _ = self.with_config(num_hidden_layers=1)
        self.build_refused(model, code=3, match=r'^%s holds tensor "model.layers.1.\S+" and \d+ more that '
                           "a MixtralForCausalLM of 1 layers? does not use here, so its results would "
                           "differ; Ostro does not ignore weights$" % model)

    def test_config_contradicts_a_shape(self):
        model, _ = self.with_config(vocab_size=65)
        self.build_refused(model, match=r'^%s/model.safetensors: tensor "model.embed_tokens.weight" is '
                           r"\[64,48\], but config.json makes it \[65,48\] \(vocabulary 65, " % model)

    def test_config_contradicts_the_intermediate_size(self):
        model, _ = self.with_config(intermediate_size=32)
        self.build_refused(model, match=r"is \[24,48\], but config.json makes it \[32,48\] ")

    def test_missing_directory_and_file_for_directory(self):
        missing = self.path("nowhere")
        self.build_refused(missing, text="there is no directory %s; --model_dir names the directory of a "
                           "Hugging Face or Meta checkpoint" % missing)
        file = self.write("file", "x")
        self.build_refused(file, text="%s is a file; --model_dir names the directory of a checkpoint" % file)
        self.build_refused(self.dir, match="^%s has neither config.json .* nor params.json .*" % self.dir)

    # config.json

    def test_unknown_architecture(self):
        model, path = self.with_config(architectures=["GPT2LMHeadModel"])
        self.build_refused(model, code=3, text='%s: architecture "GPT2LMHeadModel" is not built; there are: '
                           "MixtralForCausalLM LlamaForCausalLM MistralForCausalLM" % path)

    def test_other_activation(self):
        model, path = self.with_config(hidden_act="gelu")
        self.build_refused(model, code=3, text='%s has "hidden_act": "gelu"; only silu is built' % path)

    def test_attention_bias(self):
        model, path = self.with_config(attention_bias=True)
        self.build_refused(model, code=3, text='%s has "attention_bias": true; only false is built' % path)

    def test_quantised_checkpoint(self):
        model, path = self.with_config(quantization_config={"quant_method": "gptq"})
        self.build_refused(model, code=3, text='%s has a "quantization_config" ({"quant_method":"gptq"}); '
                           "quantised checkpoints are not read yet, only float32, float16 and bfloat16"
                           % path)

    def test_unknown_key(self):
        model, path = self.with_config(attn_logit_softcapping=50.0)
        self.build_refused(model, code=3, text='%s has "attn_logit_softcapping": 50.0, which Ostro does not '
                           "honour; if it does not change the forward pass, remove it from the file" % path)

    def test_missing_key(self):
        model, path = self.with_config(drop=["num_local_experts"])
        self.build_refused(model, text='%s has no "num_local_experts"' % path)

    def test_config_not_json(self):
        model, path = self.damaged(lambda b: b[:50], file="config.json")
        self.build_refused(model, text="%s is not JSON: it goes wrong at byte 51 of 50" % path)

    def test_config_senseless(self):
        model, path = self.with_config(num_key_value_heads=3)
        self.build_refused(model, text="%s: 4 heads are not a multiple of 3 KV heads" % path)


class BuildFlags(BadInput):
    def build_refused(self, *flags, **kw):
        return self.refused("build", "--model_dir", MIXTRAL, "--output_dir", self.path("engine"),
                            "--log_level", "warning", *flags, **kw)

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
        for flag in ("--enable_fp8", "--use_fp8", "--fp8_kv_cache", "--int8_kv_cache",
                     "--use_weight_only", "--use_smooth_quant", "--per_group"):
            with self.subTest(flag):
                message = self.build_refused(flag, code=3)
                self.assertRegex(message, "^--[a-z0-9_]+ is not built yet: weights and KV cache are "
                                 "float32, float16 or bfloat16$")

    def test_values(self):
        for flags, text in {
            "--dtype int8": 'dtype is "int8"; it must be float32, float16 or bfloat16',
            "--target tpu": '--target is "tpu"; it must be neutral, cpu or cuda',
            "--workers 0": "--workers is 0; it must be at least 1",
            "--max_batch_size 0": "max_batch_size is 0; it must be at least 1",
            "--tokens_per_block 48": "tokens_per_block is 48; it must be a power of two, 8 or more",
            "--embedding_sharding_dim 2": "--embedding_sharding_dim is 2; it must be 0 (vocabulary) or "
                                          "1 (hidden)",
            "--moe_renorm_mode SOFT": '--moe_renorm_mode is "SOFT"; it must be RENORMALIZE or NONE',
            "--n_layer 1": "%s has weights: --preset and the shape flags (--n_layer, ...) are for dummy "
                           "engines" % MIXTRAL,
        }.items():
            with self.subTest(flags):
                self.build_refused(*flags.split(), text=text)

    def test_preset(self):
        self.refused("build", "--preset", "mixtral-9x9b", "--output_dir", self.path("engine"),
                     text='preset is "mixtral-9x9b"; there are: mixtral-8x7b mixtral-8x22b llama-7b')

    def test_numbers(self):
        for flag, value in (("--tp_size", "two"), ("--tp_size", "1.5"), ("--rotary_base", "x")):
            with self.subTest(value):
                self.build_refused(flag, value, match=r"^(?=.*%s)(?=.*%s).*; see ostro build --help$"
                                   % (flag, value))


def limit_file_size():
    """Writes beyond 50 KB fail (SIGXFSZ is ignored, as Python does, where restore_signals=False)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def contents(directory):
    found = {}
    for name in os.listdir(directory):
        with open(os.path.join(directory, name), "rb") as f:
            found[name] = f.read()
    return found


class OutputDirectories(BadInput):
    def build_refused(self, output, **kw):
        return self.refused("build", "--model_dir", MIXTRAL, "--output_dir", output,
                            "--log_level", "warning", **kw)

    def test_below_a_file(self):
        file = self.write("file", "x")
        self.build_refused(os.path.join(file, "engine"),
                           match="^cannot write the engine to %s/engine: Not a directory.*; choose "
                           "another --output_dir$" % file)

    def test_a_file(self):
        file = self.write("file", "x")
        self.build_refused(file, text="--output_dir %s is a file; name a directory" % file)

    def test_a_directory_of_something_else(self):
        os.mkdir(self.path("home"))
        self.write("home/notes.txt", "x")
        self.build_refused(self.path("home"), match="^--output_dir %s holds .*; nothing was changed: "
                           "choose an empty or new directory$" % self.path("home"))

    def test_the_checkpoint_itself(self):
        model = self.copy(MIXTRAL)
        self.refused("build", "--model_dir", model, "--output_dir", model, "--log_level", "warning",
                     match="^--output_dir %s holds a config.json that is not an engine's; nothing was "
                     "changed: choose an empty or new directory$" % model)

    def test_a_read_only_file_system(self):
        # Not even root can make a directory in /proc.
        self.build_refused("/proc/engine", match="^cannot write the engine to /proc/engine: .*; choose "
                           "another --output_dir$")

    def test_without_permission(self):
        # Root may write everywhere, so another user tries it, with files that he can read.
        program = shutil.copy(ostro.binary(), self.path("ostro"))
        model = self.copy(MIXTRAL)
        os.mkdir(self.path("mine"))
        os.chmod(self.path("mine"), 0o555)
        os.chmod(self.dir, 0o755)
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        result = ostro.run_command([program, "build", "--model_dir", model, "--output_dir",
                                    self.path("mine", "engine"), "--log_level", "warning"], **user)
        self.assertEqual(result.code, 2, str(result))
        self.assertEqual(result.err, "ostro: error: cannot write the engine to %s: Permission denied (errno "
                         "13); choose another --output_dir\n" % self.path("mine", "engine"))
        self.assertEqual(os.listdir(self.path("mine")), [])

    def test_full_disk(self):
        """Every disk is too small for 35 TB; that is found before a byte is written."""
        self.refused("build", "--preset", "mixtral-8x22b", "--n_layer", "7000", "--output_dir",
                     self.path("engine"), "--log_level", "error", code=4,
                     match="^the engine takes 3[0-9]{13} bytes, but the disk of %s has only [0-9]+ free$"
                     % self.path("engine"))

    def test_disk_that_fills_while_writing(self):
        message = self.build_refused(self.path("engine"), code=4, preexec_fn=limit_file_size,
                                     restore_signals=False)
        self.assertRegex(message, r"^writing .*rank0.safetensors.*: File too large \(errno 27\)$")

    def test_a_failed_build_keeps_the_engine_that_is_there(self):
        engine = ostro.build(self.path("engine"), MIXTRAL)
        before = contents(engine)

        self.build_refused(engine, code=4, preexec_fn=limit_file_size, restore_signals=False)
        self.assertEqual(contents(engine), before)

    def test_a_killed_build_leaves_no_engine_and_is_tidied(self):
        engine = self.path("engine")
        big = ["build", "--preset", "llama-7b", "--n_layer", "2", "--output_dir", engine]
        process = subprocess.Popen([ostro.binary(), *big], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=ostro.environment())
        try:
            while not any(name.startswith(".engine.building-") and
                          any(size for size in ostro.listing(self.path(name)).values() if size)
                          for name in os.listdir(self.dir)):
                self.assertIsNone(process.poll(), "it ended before it was killed")
        finally:
            process.kill()
            process.wait()
        self.assertFalse(os.path.exists(engine))
        ostro.build(engine, MIXTRAL)
        self.assertEqual(os.listdir(self.dir), ["engine"])


class Engines(BadInput):
    def setUp(self):
        super().setUp()
        self.engine = ostro.build(self.path("engine"), MIXTRAL, tp_size=2)
        self.config = os.path.join(self.engine, "config.json")
        self.ids = self.write("ids.csv", "1,5,9\n")

    def run_refused(self, *flags, engine=None, **kw):
        return self.refused("run", "--engine_dir", engine or self.engine, "--input_file", self.ids,
                            "--max_output_len", "4", "--output_csv", self.path("out.csv"), *flags, **kw)

    def edit(self, **changes):
        config = {**ostro.read_json(self.config), **changes}
        with open(self.config, "w") as f:
            json.dump(config, f)

    def test_cut_short(self):
        path = os.path.join(self.engine, "rank1.safetensors")
        size = os.path.getsize(path)
        os.truncate(path, size - 1)
        text = "%s has %d bytes, but config.json says %d: it was cut short or replaced; copy it again" \
            % (path, size - 1, size)
        self.run_refused(text=text)
        self.refused("inspect", "--engine_dir", self.engine, text=text)
        self.refused("eval", "perplexity", "--engine_dir", self.engine, "--dataset",
                     self.write("d.jsonl", '{"input_ids": [1, 2]}\n'), text=text)

    def test_missing_rank_file(self):
        os.remove(os.path.join(self.engine, "rank1.safetensors"))
        self.run_refused(text="the engine %s lacks rank1.safetensors, one of the 2 files of its "
                         "config.json: copy it again" % self.engine)

    def test_newer_format(self):
        self.edit(format_version=2)
        self.run_refused(text="%s was made by a newer Ostro, format 2; this program reads 1: use a newer "
                         "Ostro or build the engine again" % self.config)

    def test_missing_directory(self):
        missing = self.path("nowhere")
        self.run_refused(engine=missing, text="there is no engine in %s: it has no config.json; `ostro "
                         "build --output_dir %s` makes one" % (missing, missing))

    def test_a_checkpoint_for_an_engine(self):
        self.run_refused(engine=MIXTRAL, text="%s/config.json belongs to a checkpoint, not to an engine: "
                         "`ostro build` makes an engine from it" % MIXTRAL)

    def test_a_foreign_directory(self):
        os.mkdir(self.path("other"))
        self.write("other/config.json", '{"a": 1}')
        self.run_refused(engine=self.path("other"), text='%s/config.json has no "format_version": it does '
                         "not belong to an engine that Ostro built" % self.path("other"))

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
        self.assertRegex(result.err, r"^ostro: error: the engine %s is damaged: the checksum of "
                         r"rank1.safetensors \(\S+, config.json says \S+\) is wrong: copy or build it "
                         r"again\n$" % self.engine)
        self.assertNotIn("verified", result.out)

    def test_config_changed_after_the_build(self):
        limits = ostro.read_json(self.config)["limits"]
        limits["max_batch_size"] = 3
        self.edit(limits=limits)
        result = self.ostro("inspect", "--engine_dir", self.engine, "--verify", code=2)
        self.assertRegex(result.err, r"^ostro: error: config.json of the engine %s was changed after the "
                         r"build: its checksum is \S+, it says \S+\n$" % self.engine)

    def test_ranks_of_another_mapping(self):
        self.run_refused("--tp_size", "3", text="tp_size 3 does not divide the 4 attention heads")
        self.run_refused("--pp_size", "3",
                         text="pp_size 3 is more than the 2 layers: every stage needs one")

    def test_results_that_cannot_be_written(self):
        result = self.ostro("run", "--engine_dir", self.engine, "--input_file", self.ids,
                            "--max_output_len", "4", "--output_csv", self.path("nowhere", "out.csv"),
                            code=4)
        self.assertRegex(result.err, "^ostro: error: cannot create .*/nowhere/.*: No such file or "
                         r"directory \(errno 2\)\n$")


class RunFlags(BadInput):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"), LLAMA)  # context 256

    def run_refused(self, *flags, ids="1,5,9\n", tokens="4", **kw):
        return self.refused("run", "--engine_dir", self.engine, "--input_file", self.write("ids.csv", ids),
                            "--max_output_len", tokens, *flags, **kw)

    def test_token_outside_the_vocabulary(self):
        self.run_refused(ids="1,64\n",
                         text="token 1 of the prompt is 64; the vocabulary has ids 0 to 63")
        self.run_refused(ids="1,2\n3,-4\n",
                         text="token 1 of the prompt is -4; the vocabulary has ids 0 to 63")

    def test_prompt_longer_than_the_context(self):
        self.run_refused(ids=",".join(["3"] * 257) + "\n",
                         text="the prompt has 257 tokens, the context of this engine 256")
        self.run_refused(ids=",".join(["3"] * 250) + "\n", tokens="7",
                         text="the prompt has 250 tokens and 7 more are asked for; the context of this "
                         "engine is 256")

    def test_prompt_files(self):
        self.run_refused(ids="1,x\n", text='%s line 1 holds "x", which is not a token id'
                         % self.path("ids.csv"))
        self.run_refused(ids="\n", text="there is no prompt in " + self.path("ids.csv"))
        self.run_refused(ids="99999999999\n", match=r'^\S+ids.csv line 1 holds "99999999999", which is not '
                         "a token id$")
    def test_prompt_file_of_another_kind(self):
        other = self.write("ids.json", "[1]")
        self.refused("run", "--engine_dir", self.engine, "--input_file", other, "--max_output_len", "4",
                     text="--input_file is %s; it must be a .txt (a prompt a line), a .csv or a .npy (token "
                     "ids)" % other)
        missing = self.path("nowhere.csv")
        self.refused("run", "--engine_dir", self.engine, "--input_file", missing, "--max_output_len", "4",
                     text="cannot open %s: No such file or directory (errno 2)" % missing)

    def test_npy_files(self):
        good = ostro.write_npy(self.path("a.npy"), "i", [1, 2], [1, 2])
        with open(good, "rb") as f:
            content = f.read()
        cases = {
            "f.npy": (ostro.write_npy(self.path("f.npy"), "f", [2], [1.0, 2.0]),
                      'holds "<f4"; token ids must be int32 (<i4) or int64 (<i8)'),
            "short.npy": (self.write("short.npy", content[:-3]), "is cut short: 5 bytes for 1 x 2 ids of 4 "
                          "bytes"),
            "text.npy": (self.write("text.npy", b"hello, this is text"), "is not a .npy file"),
            "three.npy": (ostro.write_npy(self.path("three.npy"), "i", [1, 1, 2], [1, 2]),
                          "has 3 dimensions; one or two are wanted"),
        }
        for path, text in cases.values():
            with self.subTest(path):
                self.refused("run", "--engine_dir", self.engine, "--input_file", path,
                             "--max_output_len", "4", text="%s %s" % (path, text))

    def test_sampling(self):
        for flags, text in {
            "--temperature -1": "temperature is -1; it must be 0 or more",
            "--temperature nan": "temperature is nan; it must be 0 or more",
            "--top_p 2": "top_p is 2; it must be in [0, 1]",
            "--top_k -1": "top_k is -1; it must be 0 (all) or more",
            "--min_p 1.5": "min_p is 1.5; it must be in [0, 1]",
        }.items():
            with self.subTest(flags):
                self.run_refused(*flags.split(), text=text)

    def test_lengths(self):
        self.run_refused(tokens="0", text="--max_output_len is 0; it must be at least 1")
        self.run_refused(tokens="-5", text="--max_output_len is -5; it must be at least 1")
        self.run_refused(tokens="9223372036854775807", match="^the prompt has 3 tokens and "
                         "9223372036854775807 more are asked for; the context of this engine is 256$")
        self.run_refused("--streaming", "--streaming_interval", "0",
                         text="--streaming_interval is 0; it must be at least 1")
        for flag in ("--max_input_length", "--threads", "--tp_size", "--pp_size", "--max_batch_size",
                     "--max_num_tokens", "--max_tokens_in_paged_kv_cache"):
            with self.subTest(flag):
                self.run_refused(flag, "-1", text="%s is -1; it must be at least 1" % flag)
        self.run_refused("--kv_cache_free_gpu_memory_fraction", "1.5",
                         text="--kv_cache_free_gpu_memory_fraction is 1.5; it must be in (0, 1]")
        self.run_refused("--end_id", "64", text="--end_id is 64; the vocabulary has ids 0 to 63, and -1 is "
                         "none")

    def test_not_built_yet(self):
        for flags in ("--num_beams 4", "--num_return_sequences 2", "--repetition_penalty 1.2",
                      "--presence_penalty 0.5", "--frequency_penalty 0.5", "--length_penalty 2",
                      "--no_repeat_ngram_size 3", "--beam_search_diversity_rate 0.1"):
            with self.subTest(flags):
                self.run_refused(*flags.split(), code=3, match="^%s is not built yet; there are: greedy, "
                                 "temperature, top_k, top_p, min_p and stop_words, with one sequence a "
                                 "prompt$" % flags)
        self.run_refused("--bad_words", "no", code=3, text="--bad_words is not built yet")

    def test_device(self):
        self.run_refused("--device", "tpu", text='--device is "tpu"; it must be auto, cpu or cuda')
        if not has_cuda():
            self.run_refused("--device", "cuda", code=3,
                             text="this build has no CUDA backend; it has: cpu")

    def test_text_needs_a_tokenizer(self):
        args = ["run", "--engine_dir", self.engine, "--max_output_len", "4"]
        self.refused(*args, "--input_text", "hello", text="text needs a tokenizer: give --tokenizer_dir, or "
                     "token ids in a .csv or .npy as --input_file")
        self.refused(*args, "--tokenizer_dir", self.path("nowhere"), text="%s does not exist"
                     % self.path("nowhere"))
        self.refused(*args, "--tokenizer_dir", self.dir, text="%s has neither a tokenizer.json nor a "
                     "tokenizer.model" % self.dir)
        self.run_refused("--stop_words", "x", text="--stop_words are texts: they need --tokenizer_dir")

    def test_tokenizer_of_another_model(self):
        # Its ids go up to 8191, the model's to 63.
        self.refused("run", "--engine_dir", self.engine, "--max_output_len", "4", "--tokenizer_dir", TINY,
                     "--input_text", "hello", match="vocabulary")

    def test_context_logits_of_several_prompts(self):
        self.run_refused("--output_context_logits_npy", self.path("c.npy"), ids="1,2\n1,3\n",
                         text="--output_context_logits_npy takes one prompt, there are 2")

    def test_unknown_flags(self):
        self.run_refused("--temperatur", "1", text="ostro run has no flag --temperatur; the nearest is "
                         "--temperature; see ostro run --help")
        self.run_refused("--max-output-length", "1", match="^ostro run has no flag --max_output_length; the "
                         "nearest is --max_(out|in)put_len(gth)?; see ostro run --help$")
        self.run_refused("--zzzzzzzzzzzz", text="ostro run has no flag --zzzzzzzzzzzz; see ostro run --help")
        self.run_refused("stray", match="^ostro run has no argument stray; see ostro run --help$")

    def test_unknown_flags_of_other_commands(self):
        self.refused("build", "--tpsize", "2", match="^ostro build has no flag --tpsize; the nearest is "
                     "--tp_size; see ostro build --help$")
        self.refused("inspect", "--verfy", match="^ostro inspect has no flag --verfy; the nearest is "
                     "--verify; see ostro inspect --help$")

    def test_unknown_commands(self):
        self.refused("biuld", text='there is no command "biuld"; the nearest is build; see ostro --help')
        self.refused("zzzzzzzzz", text='there is no command "zzzzzzzzz"; see ostro --help')
        self.refused("eval", "perplexty", text="ostro eval needs what to measure; there is: perplexity")
        self.refused("eval", text="ostro eval needs what to measure; there is: perplexity")

    def test_missing_flag(self):
        self.refused("run", "--engine_dir", self.engine, match="--max_output_len.*; see ostro run --help$")

    def test_value_of_the_wrong_kind(self):
        self.run_refused("--top_k", "many", match="(?=.*--top_k)(?=.*many).*; see ostro run --help$")
        self.run_refused("--log_level", "loud", text='log level is "loud"; it must be debug, info, warning, error '
                         "or off")


class Datasets(BadInput):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"), LLAMA)

    def test_datasets(self):
        for content, text in {
            "": "%s has no document",
            "{\n": "%s line 1 is not JSON: it goes wrong at byte 2 of 1",
            '{"text": "hello"}\n': "%s line 1 is text: give --tokenizer_dir",
            '{"input_ids": 3}\n': '%s line 1: "input_ids" is 3; it must be a list',
            '{"input_ids": [1, "a"]}\n': '%s line 1: "input_ids" holds "a", which is no token id',
            '{"input_ids": []}\n': "%s line 1 has no token",
            '{"input_ids": [1]}\n': "%s has no token after the first of each document",
            '{"input_ids": [1, 2]}\n{"ids": [1, 2]}\n': '%s line 2 has neither "text" nor "input_ids"',
        }.items():
            with self.subTest(content):
                path = self.write("d.jsonl", content)
                args = ["eval", "perplexity", "--engine_dir", self.engine, "--dataset", path]
                self.refused(*args, text=text % path)

    def test_ids_outside_the_vocabulary(self):
        path = self.write("d.jsonl", '{"input_ids": [1, 4294967298]}\n')
        self.refused("eval", "perplexity", "--engine_dir", self.engine, "--dataset", path,
                     text='%s line 1: "input_ids" holds 4294967298, which is no token id' % path)
        path = self.write("d.jsonl", '{"input_ids": [1, 64]}\n')
        self.refused("eval", "perplexity", "--engine_dir", self.engine, "--dataset", path,
                     text="token 1 of the prompt is 64; the vocabulary has ids 0 to 63")


def has_cuda():
    return os.environ.get("OSTRO_CUDA", "") not in ("", "0", "OFF")


if __name__ == "__main__":
    ostro.main()
