"""Checkpoints that are damaged, incomplete or not supported are refused.

One sentence with the values, the exit code of its kind, and nothing written.
Exit codes: 2 the input is wrong, 3 not in this build, 4 the machine failed.
"""

import json
import os
import shutil
import struct

import ostro
from ostro import GOLDEN, Safetensors

MIXTRAL = os.path.join(GOLDEN, "mixtral_5_experts_top3")
SHARDED = os.path.join(GOLDEN, "mixtral_sharded_f16")
Q = "model.layers.0.self_attn.q_proj.weight"


class Checkpoints(ostro.BadInput):
    def build_refused(self, model, *flags, **kw):
        return self.refused(
            "build",
            "--model_dir",
            model,
            "--output_dir",
            self.path("engine"),
            "--log_level",
            "warning",
            *flags,
            **kw,
        )

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
        self.build_refused(
            model,
            match=r"^%s: tensor \"\S+\" ends at byte \d+ of the data, the file "
            r"has only \d+; it was cut short: copy or download it again$" % path,
        )

    def test_truncated_in_the_header(self):
        model, path = self.damaged(lambda b: b[:100])
        self.build_refused(
            model,
            match=r"^%s says that its header has \d+ bytes, but the file has "
            r"only 100; it was cut short: copy or download it again$" % path,
        )

    def test_truncated_to_nothing(self):
        for size in (0, 7):
            with self.subTest(size):
                shutil.rmtree(self.path("model"), ignore_errors=True)
                model, path = self.damaged(lambda b: b[:size])
                self.build_refused(
                    model, text="%s has %d bytes; a safetensors file has at least 8" % (path, size)
                )

    def test_header_length_absurd(self):
        for length in (2**63 - 1, 2**64 - 1, 100_000_001):
            with self.subTest(length):
                shutil.rmtree(self.path("model"), ignore_errors=True)
                model, path = self.damaged(lambda b: struct.pack("<Q", length) + b[8:])
                self.build_refused(
                    model,
                    text="%s says that its header has %d bytes; at most "
                    "100000000 are allowed, so it is no safetensors file" % (path, length),
                )

    def test_header_length_too_short(self):
        model, path = self.damaged(lambda b: struct.pack("<Q", 50) + b[8:])
        self.build_refused(
            model, match=r"^%s: the safetensors header stops being JSON at its byte \d+$" % path
        )

    def test_header_not_json(self):
        model, path = self.damaged(lambda b: struct.pack("<Q", 8) + b"nonsense")
        self.build_refused(
            model, match=r"^%s: the safetensors header stops being JSON at its byte \d+$" % path
        )

    def offsets(self, header, name):
        return header[name]["data_offsets"]

    def test_offsets_overlap(self):
        names = {}

        def change(header):
            first, second = sorted(
                (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
            )[:2]
            names.update(first=first, second=second, at=header[second]["data_offsets"][0])
            header[second]["data_offsets"] = [x - 2 for x in header[second]["data_offsets"]]

        model, path = self.with_header(change)
        self.build_refused(
            model,
            text='%s: tensor "%s" starts at byte %d of the data and overlaps "%s", '
            "which ends at %d"
            % (path, names["second"], names["at"] - 2, names["first"], names["at"]),
        )

    def test_offsets_leave_a_gap(self):
        model, path = self.damaged(lambda b: b + b"\0" * 6)
        self.build_refused(
            model, match=r"^%s has \d+ bytes of data, but its header describes only \d+$" % path
        )

    def test_offsets_beyond_the_file(self):
        def change(header):  # the last one, so that no gap before another is found first
            begin, end = header["model.norm.weight"]["data_offsets"]
            header["model.norm.weight"]["data_offsets"] = [begin + 10**12, end + 10**12]

        model, path = self.with_header(change)
        self.build_refused(
            model,
            match=r'^%s: tensor "model.norm.weight" ends at byte 1000000\d+ of the '
            r"data, the file has only \d+; it was cut short: copy or download it again$" % path,
        )

    def test_offsets_overflow(self):
        def change(header):
            header[Q]["data_offsets"] = [2**64 - 8, 2**64 - 1]

        model, path = self.with_header(change)
        self.build_refused(
            model,
            text='%s: tensor "%s": data_offsets holds %d, which is more than any '
            "file has" % (path, Q, 2**64 - 8),
        )

    def test_offsets_backwards(self):
        def change(header):
            header[Q]["data_offsets"].reverse()

        model, path = self.with_header(change)
        self.build_refused(
            model,
            match=r'^%s: tensor "%s" has data_offsets \[\d+,\d+\], which run '
            r"backwards$" % (path, Q),
        )

    def test_shape_overflow(self):
        def change(header):
            header[Q]["shape"] = [2**40, 2**40]

        model, path = self.with_header(change)
        self.build_refused(
            model,
            text='%s: tensor "%s" has shape [1099511627776,1099511627776], more '
            "elements than any file holds" % (path, Q),
        )

    def test_shape_against_bytes(self):
        def change(header):
            header[Q]["shape"][0] += 1

        model, path = self.with_header(change)
        self.build_refused(
            model,
            match=r'^%s: tensor "%s" has \d+ bytes between its data_offsets; BF16 '
            r"\[\d+,\d+\] takes \d+$" % (path, Q),
        )

    def test_unknown_dtype(self):
        def change(header):
            header[Q]["dtype"] = "F13"

        model, path = self.with_header(change)
        self.build_refused(
            model, match=r'^%s: tensor "%s" has dtype "F13"; known are F64, ' % (path, Q)
        )

    def test_dtype_that_engines_do_not_hold(self):
        def change(header):
            header[Q]["dtype"] = "I16"

        model, path = self.with_header(change)
        self.build_refused(
            model,
            code=3,
            text='%s: tensor "%s" is I16; Ostro builds engines from F32, '
            "F16 and BF16 weights" % (path, Q),
        )

    def test_git_lfs_pointer(self):
        pointer = (
            b"version https://git-lfs.github.com/spec/v1\n"
            b"oid sha256:%s\nsize 41943040\n" % (b"0" * 64)
        )
        model, path = self.damaged(lambda b: pointer)
        self.build_refused(
            model,
            text="%s is a Git LFS pointer, not the weights: run `git lfs pull` in "
            "its directory" % path,
        )

    def test_git_lfs_pointer_of_a_pickle(self):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"
        model, path = self.damaged(
            lambda b: pointer, os.path.join(GOLDEN, "mixtral_pytorch_bin"), "pytorch_model.bin"
        )
        self.build_refused(model, match=r"^%s is a Git LFS pointer" % path)

    def test_truncated_pickle(self):
        for source, file in (
            ("mixtral_pytorch_bin", "pytorch_model.bin"),
            ("mixtral_consolidated_pth", "consolidated.00.pth"),
        ):
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
        self.build_refused(
            model,
            text="%s lacks model-00002-of-00003.safetensors of the 3 files that "
            "model.safetensors.index.json lists: copy or download what is missing" % model,
        )

    def test_index_alone(self):
        model = self.copy(SHARDED)
        for i in (1, 2, 3):
            os.remove(os.path.join(model, "model-0000%d-of-00003.safetensors" % i))
        self.build_refused(
            model, match="^%s lacks model-00001-of-00003.safetensors, .* of the 3 files " % model
        )

    def test_shards_alone(self):
        model = self.copy(SHARDED)
        os.remove(os.path.join(model, "model.safetensors.index.json"))
        self.build_refused(
            model,
            match="^%s holds model-00001-of-00003.safetensors, .*, but none of "
            "model.safetensors, .*: copy or download the file that is missing$" % model,
        )

    def test_missing_tensor(self):
        def change(header):
            header["model.layers.0.self_attn.extra"] = header.pop(Q)

        model, _ = self.with_header(change)
        self.build_refused(
            model,
            text='%s holds no tensor "%s", which its config.json calls for '
            "(2 layers, 5 experts)" % (model, Q),
        )

    def test_tensor_that_would_be_ignored(self):
        model, _ = self.with_config(num_hidden_layers=1)
        self.build_refused(
            model,
            code=3,
            match=r'^%s holds tensor "model.layers.1.\S+" and \d+ more that '
            "a MixtralForCausalLM of 1 layers? does not use here, so its results would "
            "differ; Ostro does not ignore weights$" % model,
        )

    def test_config_contradicts_a_shape(self):
        model, _ = self.with_config(vocab_size=65)
        self.build_refused(
            model,
            match=r'^%s/model.safetensors: tensor "model.embed_tokens.weight" is '
            r"\[64,48\], but config.json makes it \[65,48\] \(vocabulary 65, " % model,
        )

    def test_config_contradicts_the_intermediate_size(self):
        model, _ = self.with_config(intermediate_size=32)
        self.build_refused(model, match=r"is \[24,48\], but config.json makes it \[32,48\] ")

    def test_missing_directory_and_file_for_directory(self):
        missing = self.path("nowhere")
        self.build_refused(
            missing,
            text="there is no directory %s; --model_dir names the directory of a "
            "Hugging Face or Meta checkpoint" % missing,
        )
        file = self.write("file", "x")
        self.build_refused(
            file, text="%s is a file; --model_dir names the directory of a checkpoint" % file
        )
        self.build_refused(
            self.dir, match="^%s has neither config.json .* nor params.json .*" % self.dir
        )

    # config.json

    def test_unknown_architecture(self):
        model, path = self.with_config(architectures=["GPT2LMHeadModel"])
        self.build_refused(
            model,
            code=3,
            text='%s: architecture "GPT2LMHeadModel" is not built; there are: '
            "MixtralForCausalLM LlamaForCausalLM MistralForCausalLM" % path,
        )

    def test_other_activation(self):
        model, path = self.with_config(hidden_act="gelu")
        self.build_refused(
            model, code=3, text='%s has "hidden_act": "gelu"; only silu is built' % path
        )

    def test_attention_bias(self):
        model, path = self.with_config(attention_bias=True)
        self.build_refused(
            model, code=3, text='%s has "attention_bias": true; only false is built' % path
        )

    def test_quantised_checkpoint(self):
        model, path = self.with_config(quantization_config={"quant_method": "gptq"})
        self.build_refused(
            model,
            code=3,
            text='%s has a "quantization_config" ({"quant_method":"gptq"}); '
            "quantised checkpoints are not read yet, only float32, float16 and bfloat16" % path,
        )

    def test_unknown_key(self):
        model, path = self.with_config(attn_logit_softcapping=50.0)
        self.build_refused(
            model,
            code=3,
            text='%s has "attn_logit_softcapping": 50.0, which Ostro does not '
            "honour; if it does not change the forward pass, remove it from the file" % path,
        )

    def test_missing_key(self):
        model, path = self.with_config(drop=["num_local_experts"])
        self.build_refused(model, text='%s has no "num_local_experts"' % path)

    def test_config_not_json(self):
        model, path = self.damaged(lambda b: b[:50], file="config.json")
        self.build_refused(model, text="%s is not JSON: it goes wrong at byte 51 of 50" % path)

    def test_config_senseless(self):
        model, path = self.with_config(num_key_value_heads=3)
        self.build_refused(model, text="%s: 4 heads are not a multiple of 3 KV heads" % path)


if __name__ == "__main__":
    ostro.main()
