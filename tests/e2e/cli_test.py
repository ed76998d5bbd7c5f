"""The command line as a user meets it: the seed's lines, and every input and output of `run`."""

import json
import math
import os
import re
import shutil
import subprocess

import ostro
from ostro import GOLDEN, TINY

QUICHE = "I love french quiche"


class SeedLines(ostro.Case):
    """The lines of the seed's page, with the script's name replaced."""

    def setUp(self):
        super().setUp()
        os.symlink(TINY, self.path("Mixtral-8x7B-v0.1"))

    def shell(self, line, code=0):
        result = ostro.run_command(
            ["bash", "-c", line.replace("OSTRO", ostro.binary())], cwd=self.dir
        )
        self.assertEqual(result.code, code, str(result))
        return result

    BUILD = (
        "OSTRO build --model_dir ./Mixtral-8x7B-v0.1 \\\n"
        "                --use_inflight_batching \\\n"
        "                --enable_context_fmha \\\n"
        "                --use_gemm_plugin \\\n"
        "                --world_size 2 \\\n"
        "                --%s_size 2 \\\n"
        "                --output_dir ./trt_engines/mixtral/%s"
    )
    RUN = (
        "OSTRO run --engine_dir ./trt_engines/mixtral/%s --tokenizer_dir ./Mixtral-8x7B-v0.1 "
        '--max_output_len 8 --input_text "I love french quiche"'
    )

    def check(self, name):
        built = self.shell(self.BUILD % (name.lower(), name))
        self.assertEqual(built.out, "")
        self.assertRegex(
            built.err,
            r"^\[ostro\] \[info\] built ./trt_engines/mixtral/%s: 3 files, .* MB in "
            r".* s \(.*/s\), peak memory .* MB\n$" % name,
        )
        config = ostro.read_json(self.path("trt_engines", "mixtral", name), "config.json")
        self.assertEqual(config["mapping"]["world_size"], 2)
        self.assertEqual(config["model"]["dtype"], "bfloat16")
        self.assertTrue(config["flags"]["use_inflight_batching"])
        self.assertTrue(config["flags"]["enable_context_fmha"])
        self.assertFalse(config["dummy"])
        ran = self.shell(self.RUN % name)
        self.assertEqual(ran.err, "")
        self.assertEqual(
            ran.out,
            'Input [Text 0]: "<s> I love french quiche"\n'
            'Output [Text 0 Beam 0]: "ri, in esse caso,"\n',
        )

    def test_tensor_parallel(self):
        self.check("TP")

    def test_pipeline_parallel(self):
        self.check("PP")

    def test_plugins_with_their_type(self):
        self.shell(
            "OSTRO build --model_dir ./Mixtral-8x7B-v0.1 --dtype float16 --remove_input_padding "
            "--use_gpt_attention_plugin float16 --use_gemm_plugin float16 --paged_kv_cache "
            "--use_rmsnorm_plugin --enable_context_fmha_fp32_acc --load_by_shard --parallel_build "
            "--output_dir e"
        )
        config = ostro.read_json(self.path("e"), "config.json")
        self.assertEqual(config["model"]["dtype"], "float16")
        self.assertEqual(config["flags"]["use_gemm_plugin"], "float16")

    def test_dashes(self):
        self.shell("OSTRO build --model-dir=Mixtral-8x7B-v0.1 --output-dir e --max-batch-size=4")
        ran = self.shell(
            "OSTRO run --engine-dir e --tokenizer-dir=Mixtral-8x7B-v0.1 --max-output-len 8 "
            '--input-text "I love french quiche" --end-id -1'
        )
        self.assertIn('"ri, in esse caso,"', ran.out)

    def test_default_directories(self):
        self.shell("OSTRO build --model_dir Mixtral-8x7B-v0.1 --log_level error")
        self.assertTrue(os.path.isdir(self.path("engine_outputs")))
        ran = self.shell("OSTRO run --tokenizer_dir Mixtral-8x7B-v0.1 --max_output_len 4")
        self.assertIn(
            'Input [Text 0]: "<s> Born in north-east France, Soyer trained as a"', ran.out
        )


class Run(ostro.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"))
        cls.cases = ostro.read_json(GOLDEN, "generation.json")["cases"]

    def run_text(self, *flags, texts=(QUICHE,), tokens=20, **kw):
        return self.ostro(
            "run",
            "--engine_dir",
            self.engine,
            "--tokenizer_dir",
            TINY,
            "--max_output_len",
            str(tokens),
            "--input_text",
            *texts,
            *flags,
            **kw,
        )

    def output(self, *flags, **kw):
        """The text between the quotes of the only output."""
        out = self.run_text(*flags, **kw).out
        match = re.fullmatch(
            r'Input \[Text 0\]: ".*?"\nOutput \[Text 0 Beam 0\]: "(.*)"\n', out, re.S
        )
        self.assertTrue(match, out)
        return match.group(1)

    # Output

    def test_lines_of_several_prompts(self):
        out = self.run_text(texts=[c["text"] for c in self.cases], tokens=48).out
        want = "".join(
            'Input [Text %d]: "<s> %s"\n' % (i, c["text"]) for i, c in enumerate(self.cases)
        )
        want += "".join(
            'Output [Text %d Beam 0]: "%s"\n' % (i, c["greedy_text"])
            for i, c in enumerate(self.cases)
        )
        self.assertEqual(out, want)

    def test_ids_without_a_tokenizer(self):
        csv = self.write("p.csv", "1,328,569,330,273,2661,380,565,5784\n1 328\n")
        out = self.ostro(
            "run", "--engine_dir", self.engine, "--input_file", csv, "--max_output_len", "3"
        ).out
        self.assertRegex(
            out,
            r"^Input \[Text 0\]: 1 328 569 330 273 2661 380 565 5784\n"
            r"Input \[Text 1\]: 1 328\n"
            r"Output \[Text 0 Beam 0\]: 389 7190 287\n"
            r"Output \[Text 1 Beam 0\]: \d+ \d+ \d+\n$",
        )

    def test_streaming_prints_the_same_in_the_end(self):
        for flags in ([], ["--stop_words", "facile"], ["--streaming_interval", "7"]):
            with self.subTest(flags):
                plain = self.run_text(
                    *[f for f in flags if not f.startswith("--streaming") and f != "7"], tokens=48
                ).out
                self.assertEqual(self.run_text("--streaming", *flags, tokens=48).out, plain)

    def test_streaming_prints_tokens_as_they_come(self):
        command = [
            ostro.binary(),
            "run",
            "--engine_dir",
            self.engine,
            "--tokenizer_dir",
            TINY,
            "--max_output_len",
            "400",
            "--end_id",
            "-1",
            "--input_text",
            QUICHE,
            "--streaming",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ostro.environment())
        chunks = []
        while chunk := os.read(process.stdout.fileno(), 65536):
            chunks.append(chunk.decode())  # whole characters, always
        process.stdout.close()
        self.assertEqual(process.wait(), 0)
        self.assertGreater(len(chunks), 10)
        plain = self.run_text("--end_id", "-1", tokens=400).out
        self.assertEqual("".join(chunks), plain)

    def test_streaming_of_several_prompts_ends_with_the_whole(self):
        texts = [c["text"] for c in self.cases[:3]]
        plain = self.run_text(texts=texts).out
        streamed = self.run_text("--streaming", texts=texts).out
        for i in range(3):
            last = [l for l in streamed.split("Output ") if l.startswith("[Text %d " % i)][-1]
            self.assertIn("Output " + last.split("Input")[0].rstrip("\n"), plain)

    # The end

    def test_stop_words(self):
        whole = self.output()
        self.assertTrue(whole.startswith("ri, in esse caso, mai especomento che non"), whole)
        for stop, want in {
            "caso": "ri, in esse ",
            "sse ca": "ri, in e",  # begins and ends inside tokens
            "mento che non": "ri, in esse caso, mai especo",
            "ri": "",
            "r": "",
            "not there": whole,
        }.items():
            with self.subTest(stop):
                for streaming in ([], ["--streaming"]):
                    self.assertEqual(self.output("--stop_words", stop, *streaming), want)
        self.assertEqual(self.output("--stop_words", "mai", "esse", "caso"), "ri, in ")
        # A word that only seems to begin at the end is printed after all.
        self.assertEqual(self.output("--stop_words", whole[-3:] + "@@@"), whole)

    def test_end_id(self):
        # 389 7190 287 3401 7168 is "ri, in esse caso".
        self.assertEqual(self.output("--end_id", "3401"), "ri, in")
        ids = self.generate(self.engine, [self.cases[0]["input_ids"]], 20, end_id=3401)
        self.assertEqual(ids, [[389, 7190, 287]])

    def test_the_models_end_token(self):
        ended = [c for c in self.cases if c["greedy_ids"][-1] == 2]
        going = [c for c in self.cases if c["greedy_ids"][-1] != 2]
        self.assertTrue(going)
        for case in ended[:1]:
            ids = self.generate(self.engine, [case["input_ids"]], 60, end_id=None)
            self.assertEqual(ids, [case["greedy_ids"][:-1]])
            more = self.generate(self.engine, [case["input_ids"]], 60, end_id=-1)
            self.assertEqual(len(more[0]), 60)

    # Input

    def test_input_files(self):
        prompts = [c["input_ids"] for c in self.cases[:3]]
        want = self.generate(self.engine, prompts, 6)
        width = max(map(len, prompts))
        flat = sum((p + [-1] * (width - len(p)) for p in prompts), [])
        files = {
            "spaces.csv": self.write(
                "spaces.csv", "".join(" ".join(map(str, p)) + "\r\n" for p in prompts)
            ),
            "last_line.csv": self.write(
                "last_line.csv", "\n".join(",".join(map(str, p)) for p in prompts)
            ),
            "int32.npy": ostro.write_npy(self.path("int32.npy"), "i", [3, width], flat),
            "int64.npy": ostro.write_npy(self.path("int64.npy"), "q", [3, width], flat),
        }
        for path in files.values():
            with self.subTest(path):
                self.ostro(
                    "run",
                    "--engine_dir",
                    self.engine,
                    "--input_file",
                    path,
                    "--max_output_len",
                    "6",
                    "--end_id",
                    "-1",
                    "--output_csv",
                    self.path("got.csv"),
                )
                self.assertEqual(ostro.read_csv(self.path("got.csv")), want)
        one = ostro.write_npy(self.path("one.npy"), "i", [len(prompts[0])], prompts[0])
        self.ostro(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            one,
            "--max_output_len",
            "6",
            "--end_id",
            "-1",
            "--output_csv",
            self.path("got.csv"),
        )
        self.assertEqual(ostro.read_csv(self.path("got.csv")), want[:1])
        text = self.write("prompts.txt", "".join(c["text"] + "\n" for c in self.cases[:3]))
        self.ostro(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            text,
            "--max_output_len",
            "6",
            "--end_id",
            "-1",
            "--output_csv",
            self.path("got.csv"),
            "--tokenizer_dir",
            TINY,
        )
        self.assertEqual(ostro.read_csv(self.path("got.csv")), want)

    def test_what_it_writes_it_reads(self):
        out = self.path("out.npy")
        prompts = [c["input_ids"] for c in self.cases[:2]]
        first = self.generate(self.engine, prompts, 5, output_npy=out)
        again = self.path("again.csv")
        self.ostro(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            out,
            "--max_output_len",
            "2",
            "--end_id",
            "-1",
            "--output_csv",
            again,
        )
        self.assertEqual(ostro.read_csv(again), self.generate(self.engine, first, 2))

    def test_long_prompts_are_cut_from_the_left(self):
        ids = self.cases[0]["input_ids"]
        csv = self.write("p.csv", ",".join(map(str, ids)) + "\n")
        for level in ("error", "off"):
            result = self.ostro(
                "run",
                "--engine_dir",
                self.engine,
                "--input_file",
                csv,
                "--max_output_len",
                "3",
                "--max_input_length",
                "4",
                "--log_level",
                level,
            )
            self.assertEqual(
                result.err,
                "ostro: prompt 0 has 9 tokens; its first 5 are cut " "(--max_input_length 4)\n",
            )
            self.assertIn("Input [Text 0]: %s\n" % " ".join(map(str, ids[-4:])), result.out)

    def test_without_special_tokens(self):
        out = self.run_text("--no_add_special_tokens", tokens=1).out
        self.assertTrue(out.startswith('Input [Text 0]: "I love french quiche"\n'), out)

    def test_chat(self):
        """The checkpoint's template; Mistral's form where it brings none."""
        tokenizer = self.path("tokenizer")
        os.mkdir(tokenizer)
        shutil.copy(os.path.join(TINY, "tokenizer.model"), tokenizer)
        args = [
            "run",
            "--engine_dir",
            self.engine,
            "--tokenizer_dir",
            tokenizer,
            "--max_output_len",
            "2",
            "--input_text",
            QUICHE,
            "--chat",
        ]
        self.assertTrue(
            self.ostro(*args).out.startswith(
                'Input [Text 0]: "<s> [INST] I love french quiche [/INST]"\n'
            )
        )
        template = (
            "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        with open(os.path.join(tokenizer, "tokenizer_config.json"), "w") as f:
            json.dump({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}, f)
        self.assertTrue(
            self.ostro(*args).out.startswith(
                'Input [Text 0]: "<s> <user> I love french quiche\n<assistant>"\n'
            )
        )
        with open(os.path.join(tokenizer, "tokenizer_config.json"), "w") as f:
            json.dump({"chat_template": "{% for m in"}, f)
        result = self.ostro(*args, code=2)
        self.assertRegex(
            result.err, "^ostro: error: .*tokenizer_config.json.* is not a chat template: "
        )

    def test_guided(self):
        schema = ('{"type": "object", "properties": {"b": {"type": "boolean"}, "a": {"enum": [1, 2]}},'
                  ' "required": ["b", "a"]}')
        sampled = ["--top_k", "0", "--num_return_sequences", "2"]
        for flags, fits in (
            (["--guided_json", schema], lambda t: list(json.loads(t)) == ["b", "a"]),
            (["--guided_regex", "[a-z]{3}(, [a-z]{3}){2}"],
             lambda t: re.fullmatch("[a-z]{3}(, [a-z]{3}){2}", t)),
            (["--guided_grammar", 'root ::= "x" tail\ntail ::= "y" | "z" tail'],
             lambda t: re.fullmatch("xz*y", t)),
            (["--guided_choice", "a dog", "a cat"], lambda t: t in ("a dog", "a cat")),
        ):
            for chat in ([], ["--chat"]):
                out = self.run_text(*flags, *sampled, *chat, tokens=300).out
                texts = re.findall(r'Beam \d\]: "(.*?)"\n(?=Output|$)', out, re.S)
                self.assertEqual(len(texts), 2, out)
                for text in texts:
                    self.assertTrue(fits(text), text)
        streamed = self.output("--guided_regex", "[0-9]{5}", "--streaming")
        self.assertRegex(streamed, "^[0-9]{5}$")
        self.assertEqual(streamed, self.output("--guided_regex", "[0-9]{5}", "--tp_size", "2"))

    # Files

    def test_output_files(self):
        names = [
            "output_csv",
            "output_npy",
            "output_logits_npy",
            "output_log_probs_npy",
            "output_cum_log_probs_npy",
        ]
        files = {name: self.path(name) for name in names}
        csv = self.write(
            "p.csv", "\n".join(",".join(map(str, c["input_ids"])) for c in self.cases[:2])
        )
        # The first ends at its fourth token, which is not among its ids.
        self.ostro(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            csv,
            "--max_output_len",
            "6",
            "--end_id",
            "3401",
            *ostro.flags_of(files),
        )
        ids = ostro.read_csv(files["output_csv"])
        self.assertEqual(ids[0], [389, 7190, 287])
        self.assertEqual(len(ids[1]), 6)
        npy = ostro.Npy(files["output_npy"])
        self.assertEqual((npy.dtype, npy.shape), ("<i4", (2, 6)))
        self.assertEqual(npy.row(0).tolist(), ids[0] + [-1] * 3)
        self.assertEqual(npy.row(1).tolist(), ids[1])
        logits = ostro.Npy(files["output_logits_npy"])
        log_probs = ostro.Npy(files["output_log_probs_npy"])
        sums = ostro.Npy(files["output_cum_log_probs_npy"])
        self.assertEqual((logits.dtype, logits.shape), ("<f4", (2, 6, 8192)))
        self.assertEqual((log_probs.dtype, log_probs.shape), ("<f4", (2, 6)))
        self.assertEqual((sums.dtype, sums.shape), ("<f4", (2,)))
        chosen = [ids[0] + [3401], ids[1]]
        for i in range(2):
            for step, token in enumerate(chosen[i]):
                row = logits.row(i, step)
                self.assertEqual(token, max(range(8192), key=row.__getitem__))
                self.assertAlmostEqual(
                    log_probs.row(i)[step], ostro.log_prob(row, token), delta=1e-6
                )
            for step in range(len(chosen[i]), 6):
                self.assertEqual(log_probs.row(i)[step], 0)
                self.assertEqual(set(logits.row(i, step)), {0.0})
            self.assertAlmostEqual(sums.values[i], math.fsum(log_probs.row(i)), delta=1e-5)

    def test_profiling(self):
        out = self.run_text("--run_profiling", tokens=8).out
        self.assertRegex(
            out,
            r"\nProfile: 1 sequences?, 9 prompt tokens, 8 generated in [0-9.]+ s\n"
            r"  time to first token +[0-9.]+ ms\n"
            r"  time per token +[0-9.]+ ms.*\n"
            r"  throughput +[0-9.]+ output tokens/s\n$",
        )

    def test_log_levels(self):
        self.assertEqual(self.run_text().err, "")
        info = self.run_text("--log_level", "info").err
        self.assertRegex(info, r"\[ostro\] \[info\] rank 0: [0-9.]+ GB of weights placed in ")
        self.assertRegex(info, r"\[ostro\] \[info\] rank 0: KV cache of \d+ tokens")

    def test_sampling_flags(self):
        texts = {
            self.output("--temperature", "1.3", "--top_k", "0", "--random_seed", str(seed))
            for seed in range(4)
        }
        self.assertGreater(len(texts), 2)
        greedy = self.output()
        self.assertEqual(self.output("--temperature", "0", "--top_k", "0"), greedy)
        self.assertEqual(self.output("--top_k", "0", "--top_p", "0.0001"), greedy)
        self.assertEqual(self.output("--top_k", "0", "--min_p", "1"), greedy)
        # A large seed is a seed of its own.
        self.assertNotEqual(
            self.output(
                "--temperature", "1.3", "--top_k", "0", "--random_seed", "18446744073709551615"
            ),
            self.output("--temperature", "1.3", "--top_k", "0", "--random_seed", "4294967295"),
        )

    def test_accepted_flags(self):
        plain = self.output()
        self.assertEqual(
            self.output(
                "--enable_chunked_context",
                "--kv_cache_enable_block_reuse",
                "--kv_cache_free_gpu_memory_fraction",
                "0.1",
                "--device",
                "cpu",
                "--num_beams",
                "1",
                "--repetition_penalty",
                "1.0",
            ),
            plain,
        )


if __name__ == "__main__":
    ostro.main()
