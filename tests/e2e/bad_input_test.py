"""Prompts, data sets and flags that are wrong are refused.

One sentence with the values, the exit code of its kind, and nothing written.
Exit codes: 2 the input is wrong, 3 not in this build, 4 the machine failed.
"""

import os

import ostro
from ostro import GOLDEN, TINY

LLAMA = os.path.join(GOLDEN, "llama_dense")


class RunFlags(ostro.BadInput):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = ostro.build(os.path.join(cls.shared, "engine"), LLAMA)  # context 256

    def run_refused(self, *flags, ids="1,5,9\n", tokens="4", **kw):
        return self.refused(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            self.write("ids.csv", ids),
            "--max_output_len",
            tokens,
            *flags,
            **kw,
        )

    def test_token_outside_the_vocabulary(self):
        self.run_refused(
            ids="1,64\n", text="prompt 0: token 1 of the prompt is 64; the vocabulary has ids 0 to 63"
        )
        self.run_refused(
            ids="1,2\n3,-4\n", text="prompt 1: token 1 of the prompt is -4; the vocabulary has ids 0 to 63"
        )

    def test_prompt_longer_than_the_context(self):
        self.run_refused(
            ids=",".join(["3"] * 257) + "\n",
            text="prompt 0: the prompt has 257 tokens, the context of this engine 256",
        )
        self.run_refused(
            ids=",".join(["3"] * 250) + "\n",
            tokens="7",
            text="prompt 0: the prompt has 250 tokens and 7 more are asked for; the context of this "
            "engine is 256",
        )

    def test_prompt_files(self):
        self.run_refused(
            ids="1,x\n", text='%s line 1 holds "x", which is not a token id' % self.path("ids.csv")
        )
        self.run_refused(ids="\n", text="there is no prompt in " + self.path("ids.csv"))
        self.run_refused(
            ids="99999999999\n",
            match=r'^\S+ids.csv line 1 holds "99999999999", which is not ' "a token id$",
        )

    def test_prompt_file_of_another_kind(self):
        other = self.write("ids.json", "[1]")
        self.refused(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            other,
            "--max_output_len",
            "4",
            text="--input_file is %s; it must be a .txt (a prompt a line), a .csv or a .npy (token "
            "ids)" % other,
        )
        missing = self.path("nowhere.csv")
        self.refused(
            "run",
            "--engine_dir",
            self.engine,
            "--input_file",
            missing,
            "--max_output_len",
            "4",
            text="cannot open %s: No such file or directory (errno 2)" % missing,
        )

    def test_npy_files(self):
        good = ostro.write_npy(self.path("a.npy"), "i", [1, 2], [1, 2])
        with open(good, "rb") as f:
            content = f.read()
        cases = {
            "f.npy": (
                ostro.write_npy(self.path("f.npy"), "f", [2], [1.0, 2.0]),
                'holds "<f4"; token ids must be int32 (<i4) or int64 (<i8)',
            ),
            "short.npy": (
                self.write("short.npy", content[:-3]),
                "is cut short: 5 bytes for 1 x 2 ids of 4 " "bytes",
            ),
            "text.npy": (self.write("text.npy", b"hello, this is text"), "is not a .npy file"),
            "three.npy": (
                ostro.write_npy(self.path("three.npy"), "i", [1, 1, 2], [1, 2]),
                "has 3 dimensions; one or two are wanted",
            ),
        }
        for path, text in cases.values():
            with self.subTest(path):
                self.refused(
                    "run",
                    "--engine_dir",
                    self.engine,
                    "--input_file",
                    path,
                    "--max_output_len",
                    "4",
                    text="%s %s" % (path, text),
                )

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
        self.run_refused(
            tokens="9223372036854775807",
            match="^prompt 0: the prompt has 3 tokens and "
            "9223372036854775807 more are asked for; the context of this engine is 256$",
        )
        self.run_refused(
            "--streaming",
            "--streaming_interval",
            "0",
            text="--streaming_interval is 0; it must be at least 1",
        )
        for flag in (
            "--max_input_length",
            "--threads",
            "--tp_size",
            "--pp_size",
            "--max_batch_size",
            "--max_num_tokens",
            "--max_tokens_in_paged_kv_cache",
        ):
            with self.subTest(flag):
                self.run_refused(flag, "-1", text="%s is -1; it must be at least 1" % flag)
        self.run_refused(
            "--kv_cache_free_gpu_memory_fraction",
            "1.5",
            text="--kv_cache_free_gpu_memory_fraction is 1.5; it must be in (0, 1]",
        )
        self.run_refused(
            "--end_id",
            "64",
            text="--end_id is 64; the vocabulary has ids 0 to 63, and -1 is " "none",
        )

    def test_beams(self):
        for flags, text in (
            ("--num_beams 0", "--num_beams is 0; it must be at least 1"),
            ("--num_beams 4", "prompt 0: num_beams is 4; the engine was built with --max_beam_width 1"),
            ("--length_penalty 2", "--length_penalty 2 goes with --num_beams over 1"),
            ("--early_stopping 0", "--early_stopping 0 goes with --num_beams over 1"),
            ("--num_beams 2 --early_stopping 3", "--early_stopping is 3; it must be 0, 1 or 2"),
            (
                "--num_beams 2 --streaming",
                "--streaming prints tokens as they come; those of 2 beams are known when the search "
                "has ended",
            ),
        ):
            with self.subTest(flags):
                self.run_refused(*flags.split(), text=text)

    def test_guides(self):
        self.run_refused("--guided_regex", "a", text="a guide is about text: it needs --tokenizer_dir")
        self.run_refused("--guided_json", "", text="a guide is about text: it needs --tokenizer_dir")
        self.run_refused(
            "--guided_choice", "\udcff", "--tokenizer_dir", TINY,
            text="--guided_choice has a choice that is not UTF-8",
        )
        self.run_refused(
            "--guided_regex", "a", "--guided_choice", "b", "--tokenizer_dir", TINY,
            text="--guided_regex and --guided_choice both say what the output must look like",
        )

    def test_sampling_values_out_of_range(self):
        for flags, text in (
            ("--repetition_penalty 0", "repetition_penalty is 0; it must be "),
            ("--no_repeat_ngram_size -1", "no_repeat_ngram_size is -1; it must be "),
            ("--num_return_sequences 0", "--num_return_sequences is 0; it must be at least 1"),
        ):
            with self.subTest(flags):
                self.run_refused(*flags.split(), match="^%s" % text)

    def test_device(self):
        self.run_refused("--device", "tpu", text='--device is "tpu"; it must be auto, cpu or cuda')
        if not has_cuda():
            self.run_refused(
                "--device", "cuda", code=3, text="this build has no CUDA backend; it has: cpu"
            )

    def test_text_needs_a_tokenizer(self):
        args = ["run", "--engine_dir", self.engine, "--max_output_len", "4"]
        self.refused(
            *args,
            "--input_text",
            "hello",
            text="text needs a tokenizer: give --tokenizer_dir, or "
            "token ids in a .csv or .npy as --input_file",
        )
        self.refused(
            *args,
            "--tokenizer_dir",
            self.path("nowhere"),
            text="%s does not exist" % self.path("nowhere"),
        )
        self.refused(
            *args,
            "--tokenizer_dir",
            self.dir,
            text="%s has neither a tokenizer.json nor a " "tokenizer.model" % self.dir,
        )
        self.run_refused(
            "--stop_words", "x", text="--stop_words are texts: they need --tokenizer_dir"
        )

    def test_tokenizer_of_another_model(self):
        # Its ids go up to 8191, the model's to 63.
        self.refused(
            "run",
            "--engine_dir",
            self.engine,
            "--max_output_len",
            "4",
            "--tokenizer_dir",
            TINY,
            "--input_text",
            "hello",
            match="vocabulary",
        )

    def test_context_logits_of_several_prompts(self):
        self.run_refused(
            "--output_context_logits_npy",
            self.path("c.npy"),
            ids="1,2\n1,3\n",
            text="--output_context_logits_npy takes one prompt and one sequence, there are 2",
        )

    def test_unknown_flags(self):
        self.run_refused(
            "--temperatur",
            "1",
            text="ostro run has no flag --temperatur; the nearest is "
            "--temperature; see ostro run --help",
        )
        self.run_refused(
            "--max-output-length",
            "1",
            match="^ostro run has no flag --max_output_length; the "
            "nearest is --max_(out|in)put_len(gth)?; see ostro run --help$",
        )
        self.run_refused(
            "--zzzzzzzzzzzz", text="ostro run has no flag --zzzzzzzzzzzz; see ostro run --help"
        )
        self.run_refused("stray", match="^ostro run has no argument stray; see ostro run --help$")

    def test_unknown_flags_of_other_commands(self):
        self.refused(
            "build",
            "--tpsize",
            "2",
            match="^ostro build has no flag --tpsize; the nearest is "
            "--tp_size; see ostro build --help$",
        )
        self.refused(
            "inspect",
            "--verfy",
            match="^ostro inspect has no flag --verfy; the nearest is "
            "--verify; see ostro inspect --help$",
        )

    def test_unknown_commands(self):
        self.refused(
            "biuld", text='there is no command "biuld"; the nearest is build; see ostro --help'
        )
        self.refused("zzzzzzzzz", text='there is no command "zzzzzzzzz"; see ostro --help')
        self.refused(
            "eval", "perplexty", text="ostro eval needs what to measure; there is: perplexity"
        )
        self.refused("eval", text="ostro eval needs what to measure; there is: perplexity")

    def test_missing_flag(self):
        self.refused(
            "run", "--engine_dir", self.engine, match="--max_output_len.*; see ostro run --help$"
        )

    def test_value_of_the_wrong_kind(self):
        self.run_refused(
            "--top_k", "many", match="(?=.*--top_k)(?=.*many).*; see ostro run --help$"
        )
        self.run_refused(
            "--log_level",
            "loud",
            text='--log_level: log level is "loud"; it must be debug, info, warning, error ' "or off",
        )


class Datasets(ostro.BadInput):
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
            '{"input_ids": [1, 2]}\n{"ids": [1]}\n': '%s line 2 has neither "text" nor "input_ids"',
        }.items():
            with self.subTest(content):
                path = self.write("d.jsonl", content)
                args = ["eval", "perplexity", "--engine_dir", self.engine, "--dataset", path]
                self.refused(*args, text=text % path)

    def test_ids_outside_the_vocabulary(self):
        path = self.write("d.jsonl", '{"input_ids": [1, 4294967298]}\n')
        self.refused(
            "eval",
            "perplexity",
            "--engine_dir",
            self.engine,
            "--dataset",
            path,
            text='%s line 1: "input_ids" holds 4294967298, which is no token id' % path,
        )
        path = self.write("d.jsonl", '{"input_ids": [1, 64]}\n')
        self.refused(
            "eval",
            "perplexity",
            "--engine_dir",
            self.engine,
            "--dataset",
            path,
            text="token 1 of the prompt is 64; the vocabulary has ids 0 to 63",
        )


def has_cuda():
    return os.environ.get("OSTRO_CUDA", "") not in ("", "0", "OFF")


if __name__ == "__main__":
    ostro.main()
