"""Every endpoint of `ostro serve`, its errors and its keys."""

import json
import os
import re


import serving
from serving import PROMPT, ostro

CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]


def joined(events, index=0):
    return "".join(
        c["text"] for e in events for c in e["choices"] if c["index"] == index and "text" in c
    )


class Completions(serving.Case):
    def run_text(self, prompt, tokens):
        result = self.ostro("run", "--engine_dir", self.engine, "--tokenizer_dir", ostro.TINY,
                            "--max_output_len", tokens, "--input_text", prompt, "--threads", 1)
        return re.search(r'Output \[Text 0 Beam 0\]: "(.*)"\n$', result.out, re.DOTALL).group(1)

    def test_greedy_text_is_that_of_run(self):
        answer = self.server.complete(max_tokens=40).json
        self.assertEqual(answer["object"], "text_completion")
        self.assertEqual(answer["model"], self.server.model)
        choice = answer["choices"][0]
        # run prints the text alone, the server goes on from the prompt's.
        self.assertEqual(choice["text"].removeprefix(" "), self.run_text(PROMPT, 40))
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(answer["usage"]["completion_tokens"], 40)
        count = self.server.post("/tokenize", {"prompt": PROMPT}).json["count"]
        self.assertEqual(answer["usage"]["prompt_tokens"], count)
        self.assertEqual(answer["usage"]["total_tokens"], count + 40)

    def test_stream_joined_is_the_whole(self):
        whole = self.server.complete(max_tokens=40).json
        answer = self.server.complete(max_tokens=40, stream=True,
                                      stream_options={"include_usage": True})
        self.assertTrue(answer.headers["Content-Type"].startswith("text/event-stream"))
        events = answer.events
        self.assertEqual(joined(events), whole["choices"][0]["text"])
        self.assertEqual([e["choices"][0]["finish_reason"] for e in events[:-1]][-1], "length")
        self.assertEqual(events[-1]["choices"], [])
        got, want = events[-1]["usage"], whole["usage"]
        self.assertEqual({k: got[k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")},
                         {k: want[k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")})
        self.assertTrue(all(e["usage"] is None for e in events[:-1]))
        self.assertNotIn("usage", self.server.complete(stream=True).events[0])

    def test_forms_of_a_prompt(self):
        texts = [PROMPT, "The dog said"]
        ids = [self.server.post("/tokenize", {"prompt": t}).json["tokens"] for t in texts]
        alone = [self.server.complete(t).json["choices"][0]["text"] for t in texts]
        for form in (texts, ids):
            choices = self.server.complete(form).json["choices"]
            self.assertEqual([c["text"] for c in choices], alone)
            self.assertEqual([c["index"] for c in choices], [0, 1])
        self.assertEqual(self.server.complete(ids[0]).json["choices"][0]["text"], alone[0])

    def test_stop_strings_do_not_show_however_tokens_cut_them(self):
        text = self.server.complete(max_tokens=60).json["choices"][0]["text"]
        for at in range(5, 60, 7):
            stop = text[at : at + 5]
            want = text[: text.index(stop)]
            answer = self.server.complete(max_tokens=60, stop=stop, logprobs=0).json["choices"][0]
            self.assertEqual((answer["text"], answer["finish_reason"]), (want, "stop"), repr(stop))
            tokens = "".join(answer["logprobs"]["tokens"])
            self.assertTrue(want.startswith(tokens), (tokens, want))
            events = self.server.complete(max_tokens=60, stop=["never there", stop], stream=True).events
            self.assertEqual(joined(events), want)
            self.assertEqual(events[-1]["choices"][0]["finish_reason"], "stop")
        self.server.wait_for(lambda m: m["ostro_requests_running"] == 0, "stopped requests end")

    def test_n_choices_and_seeds(self):
        fields = dict(n=3, temperature=1, seed=7, max_tokens=24)
        first = [c["text"] for c in self.server.complete(**fields).json["choices"]]
        self.assertEqual(len(set(first)), 3)
        self.assertEqual([c["text"] for c in self.server.complete(**fields).json["choices"]], first)
        events = self.server.complete(stream=True, **fields).events
        self.assertEqual([joined(events, i) for i in range(3)], first)
        other = self.server.complete(**{**fields, "seed": 8}).json["choices"][0]["text"]
        self.assertNotEqual(other, first[0])
        one = self.server.complete(**{**fields, "n": 1}).json["choices"][0]["text"]
        self.assertEqual(one, first[0])

    def test_n_with_a_stop_string(self):
        texts = [c["text"] for c in self.server.complete(n=3, temperature=1, seed=3,
                                                         max_tokens=40).json["choices"]]
        stop = texts[1][6:9]
        stopped = self.server.complete(n=3, temperature=1, seed=3, max_tokens=40, stop=stop).json
        for text, choice in zip(texts, stopped["choices"]):
            self.assertEqual(choice["text"], text.split(stop)[0])

    def test_log_probs(self):
        choice = self.server.complete(logprobs=3, max_tokens=8).json["choices"][0]
        log = choice["logprobs"]
        self.assertEqual("".join(log["tokens"]), choice["text"])
        self.assertEqual(len(log["token_logprobs"]), 8)
        for token, value, top in zip(log["tokens"], log["token_logprobs"], log["top_logprobs"]):
            self.assertEqual(len(top), 3)
            self.assertAlmostEqual(max(top.values()), value, places=5)  # greedy
            self.assertIn(token, top)
        self.assertEqual(log["text_offset"][:2], [0, len(log["tokens"][0])])
        events = self.server.complete(logprobs=3, max_tokens=8, stream=True).events
        parts = [e["choices"][0]["logprobs"] for e in events]
        for key in log:
            self.assertEqual([x for p in parts for x in p[key]], log[key], key)

    def test_echo(self):
        plain = self.server.complete().json["choices"][0]["text"]
        self.assertEqual(self.server.complete(echo=True).json["choices"][0]["text"], PROMPT + plain)
        events = self.server.complete(echo=True, stream=True, n=2).events
        self.assertEqual(joined(events, 1), PROMPT + plain)
        scored = self.server.complete(echo=True, logprobs=1, max_tokens=0).json["choices"][0]
        self.assertEqual(scored["text"], PROMPT)
        count = self.server.post("/tokenize", {"prompt": PROMPT}).json["count"]
        log = scored["logprobs"]["token_logprobs"]
        self.assertEqual((len(log), log[0]), (count, None))
        self.assertTrue(all(x <= 0 for x in log[1:]))
        # What was generated has the same log-probabilities when it is scored as a prompt.
        made = self.server.complete(logprobs=0, max_tokens=6).json["choices"][0]
        ids = self.server.post("/tokenize", {"prompt": PROMPT + made["text"]}).json["tokens"]
        again = self.server.complete(ids, echo=True, logprobs=0, max_tokens=0).json["choices"][0]
        for a, b in zip(again["logprobs"]["token_logprobs"][count:],
                        made["logprobs"]["token_logprobs"]):
            self.assertAlmostEqual(a, b, places=4)

    def test_logit_bias_and_penalties(self):
        word = self.server.post("/detokenize", {"tokens": [4000]}).json["prompt"]
        biased = self.server.complete(logit_bias={"4000": 100}, max_tokens=4).json
        self.assertEqual(biased["choices"][0]["text"].count(word), 4)
        plain = self.server.complete(max_tokens=80).json["choices"][0]["text"]
        for field in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 2}):
            self.assertNotEqual(self.server.complete(max_tokens=80, **field).json["choices"][0]["text"],
                                plain, field)
        for greedy in ({"top_k": 1, "temperature": 1}, {"top_p": 0, "temperature": 1},
                       {"min_p": 1, "temperature": 1}):
            self.assertEqual(self.server.complete(max_tokens=80, **greedy).json["choices"][0]["text"],
                             plain, greedy)


class Chat(serving.Case):
    def chat(self, messages=CHAT, **fields):
        answer = self.server.post("/v1/chat/completions",
                                  {"messages": messages, "temperature": 0, "max_tokens": 16, **fields})
        self.assertEqual(answer.status, 200, answer.text)
        return answer

    def test_whole_and_stream(self):
        body = self.chat(max_tokens=30).json
        self.assertEqual(body["object"], "chat.completion")
        message = body["choices"][0]["message"]
        self.assertEqual(message["role"], "assistant")
        result = self.ostro("run", "--engine_dir", self.engine, "--tokenizer_dir", ostro.TINY, "--chat",
                            "--max_output_len", 30, "--input_text", CHAT[0]["content"], "--threads", 1)
        self.assertIn('Output [Text 0 Beam 0]: "%s"\n' % message["content"], result.out)
        events = self.chat(max_tokens=30, stream=True).events
        self.assertEqual(events[0]["object"], "chat.completion.chunk")
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        self.assertEqual(text, message["content"])
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], body["choices"][0]["finish_reason"])

    def test_parts_of_a_message_are_its_text(self):
        parts = [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a dog."}]
        self.assertEqual(self.chat([{"role": "user", "content": parts}]).json["choices"],
                         self.chat().json["choices"])

    def test_the_longest_answer_is_the_rest_of_the_context(self):
        answer = self.server.post("/v1/chat/completions", {"messages": CHAT, "ignore_eos": True,
                                                           "temperature": 0}).json
        self.assertEqual(answer["usage"]["total_tokens"], 1024)
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")

    def test_log_probs(self):
        choice = self.chat(logprobs=True, top_logprobs=2).json["choices"][0]
        content = choice["logprobs"]["content"]
        self.assertEqual(len(content), 16)
        for entry in content:
            self.assertEqual(bytes(entry["bytes"]).decode(), entry["token"])
            self.assertEqual(len(entry["top_logprobs"]), 2)
            self.assertEqual(entry["top_logprobs"][0]["token"], entry["token"])
        self.assertEqual("".join(e["token"] for e in content).strip(), choice["message"]["content"].strip())

    def test_a_template_of_ones_own(self):
        jinja = self.write("t.jinja", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
        server = serving.Server(self.engine, chat_template=jinja)
        self.addCleanup(server.kill)
        got = server.post("/tokenize", {"messages": [{"role": "user", "content": PROMPT}]}).json
        want = server.post("/tokenize", {"prompt": PROMPT}).json
        self.assertEqual(got, want)
        self.assertEqual(server.stop(), 0)

    def test_errors_name_the_message(self):
        def refused(messages, param, match):
            self.assert_error(self.server.post("/v1/chat/completions", {"messages": messages}), 400,
                              param, match=match)

        refused([], "messages", "at least one")
        refused("hi", "messages", "must be a list")
        refused([{"content": "x"}], "messages[0].role", "missing")
        refused([{"role": "user"}], "messages[0].content", "missing")
        refused([{"role": "user", "content": 3}], "messages[0].content", "it is 3")
        refused(CHAT + [{"role": "user", "content": "x"}], "messages", "must alternate")
        refused([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
                "messages[0].content[0].type", "supports only \"text\"")
        refused([{"role": "user", "content": "x", "name": "y"}], "messages[0].name", "does not support")


class Rest(serving.Case):
    def test_models(self):
        body = self.server.get("/v1/models").json
        self.assertEqual([m["id"] for m in body["data"]], ["tiny"])
        self.assertEqual(self.server.get("/v1/models/tiny").json, body["data"][0])
        self.assert_error(self.server.get("/v1/models/other"), 404, "model")

    def test_tokenize_and_back(self):
        text = "Grüße, ein 'Test' \U0001f600!"
        answer = self.server.post("/tokenize", {"prompt": text}).json
        self.assertEqual(answer["tokens"][0], 1)
        self.assertEqual(answer["max_model_len"], 1024)
        self.assertEqual(self.server.post("/detokenize", {"tokens": answer["tokens"]}).json,
                         {"prompt": text})
        bare = self.server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json
        self.assertEqual(bare["tokens"], answer["tokens"][1:])
        self.assert_error(self.server.post("/detokenize", {"tokens": [1, 8192]}), 400, "tokens[1]")
        self.assert_error(self.server.post("/tokenize", {}), 400, "prompt")

    def test_health_version_metrics(self):
        self.assertEqual(self.server.get("/health").json, {"status": "ok"})
        self.assertEqual(self.server.get("/health/ready").json, {"status": "ready"})
        self.assertRegex(self.server.get("/version").json["version"], r"^\d+\.\d+\.\d+$")
        before = self.server.metrics()
        self.server.complete(max_tokens=10, ignore_eos=True)
        after = self.server.wait_for(
            lambda m: m["ostro_request_seconds_count"] > before["ostro_request_seconds_count"], "a count")
        self.assertEqual(after["ostro_output_tokens_total"] - before["ostro_output_tokens_total"], 10)
        for name in ("time_to_first_token", "time_per_output_token", "queue", "step", "inter_token"):
            self.assertGreater(after["ostro_%s_seconds_count" % name],
                               before["ostro_%s_seconds_count" % name], name)
        self.assertGreater(after["ostro_kv_blocks"], 0)
        self.assertGreater(after["process_resident_memory_bytes"], 1 << 20)
        key = 'ostro_http_requests_total{route="/v1/completions",status="200"}'
        self.assertEqual(after[key] - before.get(key, 0), 1)
        # Each token that was computed chose 2 of 8 experts in each layer: the whole prompt (it is shorter than
        # a block of the cache), and what was generated but for the last.
        layers = {}
        for name, value in after.items():
            if match := re.match(r'ostro_expert_tokens_total\{layer="(\d+)",expert="(\d+)"\}', name):
                layers.setdefault(int(match[1]), {})[int(match[2])] = value - before[name]
        count = self.server.post("/tokenize", {"prompt": PROMPT}).json["count"]
        self.assertGreater(len(layers), 1)
        for experts in layers.values():
            self.assertEqual(list(experts), list(range(8)))
            self.assertEqual(sum(experts.values()), 2 * (count + 9))
            self.assertTrue(all(0 <= n <= count + 9 for n in experts.values()))
        # A common beginning is found in the cache.
        text = "The sun was warm and the birds sang in the trees near the old house. " * 12
        self.server.complete(text)
        usage = self.server.complete(text).json["usage"]
        self.assertGreaterEqual(usage["prompt_tokens_details"]["cached_tokens"], 64)
        self.assertGreater(self.server.metrics()["ostro_kv_hit_rate"], 0)

    def test_the_page_is_what_the_sources_hold(self):
        folder = os.path.join(ostro.SOURCE, "src", "server", "page")
        for path, name, kind in (("/", "index.html", "text/html"), ("/page.css", "page.css", "text/css"),
                                 ("/page.js", "page.js", "text/javascript")):
            answer = self.server.get(path)
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                self.assertEqual(answer.text, f.read(), name)
            self.assertEqual(answer.headers["Content-Type"], kind + "; charset=utf-8")
            self.assertIn("default-src 'self'", answer.headers["Content-Security-Policy"])

    def test_paths_and_methods(self):
        self.assert_error(self.server.get("/v1/nothing"), 404)
        answer = self.server.get("/v1/completions")
        self.assert_error(answer, 405, match="takes POST")
        self.assertEqual(answer.headers["Allow"], "POST")
        self.assert_error(self.server.post("/health", {}), 405)
        head = self.server.request("HEAD", "/health")
        self.assertEqual((head.status, head.text, head.headers["Content-Length"]), (200, "", "15"))

    def test_request_ids(self):
        answer = self.server.get("/health", headers={"X-Request-Id": "mine-42"})
        self.assertEqual(answer.headers["X-Request-Id"], "mine-42")
        answer = self.server.get("/health", headers={"X-Request-Id": "not a word"})
        self.assertRegex(answer.headers["X-Request-Id"], r"^req-[0-9a-f]{16}$")

    def test_a_connection_is_used_again(self):
        connection = self.server.connect()
        self.addCleanup(connection.close)
        for _ in range(3):
            connection.request("POST", "/v1/completions",
                               json.dumps({"prompt": PROMPT, "max_tokens": 2, "stream": True}))
            response = connection.getresponse()
            self.assertTrue(response.read().endswith(b"data: [DONE]\n\n"))

    def test_bodies_that_are_refused(self):
        def refused(body, param=None, match=None, status=400):
            self.assert_error(self.server.post("/v1/completions", body), status, param, match=match)

        refused(b"", match="JSON")
        refused(b"{", match="JSON")
        refused(b"[1]", match="must be a JSON object")
        refused(b'{"prompt": "\xff\xfe"}')
        refused(b'{"prompt": NaN}')
        refused(b'{"prompt": "x", "temperature": 1e999}')
        refused(b'{"a":' * 20000)
        refused(b"[" * 200000)
        refused({}, "prompt", "missing")
        ok = {"prompt": "x"}
        refused({**ok, "model": "gpt-4"}, "model", "no model", 404)
        for field, value in (
            ("temperature", "hot"), ("temperature", -0.1), ("temperature", 2.1), ("temperature", True),
            ("top_p", 1.5), ("top_k", -2), ("top_k", 1.5), ("min_p", 2), ("n", 0), ("n", 129), ("n", "1"),
            ("max_tokens", -1), ("max_tokens", 2**70), ("max_tokens", 0), ("logprobs", 21),
            ("logprobs", True), ("presence_penalty", 3), ("frequency_penalty", -3), ("seed", 1.5),
            ("seed", 2**63), ("stop", [""]), ("stop", ["x"] * 17), ("stop", 3), ("stop", [3]),
            ("stream", "yes"), ("echo", 1), ("user", 5), ("logit_bias", [1]), ("best_of", 2),
            ("suffix", "x"), ("tools", []), ("response_format", "json"),
            ("stream_options", {"include_usage": True}), ("nonsense", 1),
        ):
            refused({**ok, field: value}, field)
        refused({**ok, "logit_bias": {"x": 1}}, "logit_bias")
        refused({**ok, "logit_bias": {"8192": 1}}, "logit_bias")
        refused({**ok, "logit_bias": {"1": 101}}, "logit_bias.1")
        refused({**ok, "stream": True, "stream_options": {"x": 1}}, "stream_options.x")
        for prompt, param in (([], "prompt"), (3, "prompt"), ([1, -1], "prompt[1]"), ([8192], "prompt[0]"),
                              (["x", 1], "prompt[1]"), ([[1], []], "prompt[1]"), ({}, "prompt"),
                              (["x"] * 257, "prompt")):
            refused({"prompt": prompt}, param)
        refused({**ok, "max_tokens": 1024}, "prompt", "has room for 1024")
        refused({"prompt": [5] * 1024}, "prompt", "1024 tokens")
        self.assertEqual(self.server.post("/v1/completions", {**ok, "max_tokens": None, "suffix": None,
                                                              "tools": None}).status, 200)

    def test_a_body_too_large(self):
        answer = self.server.post("/v1/completions", {"prompt": "x" * (9 << 20)})
        self.assert_error(answer, 413)


class Keys(serving.Case):
    @classmethod
    def setUpClass(cls):
        ostro.Case.setUpClass.__func__(cls)
        cls.engine = ostro.build(cls.shared + "/tiny")
        with open(cls.shared + "/keys", "w") as f:
            f.write("# for tests\nfrom-file\n\n")
        cls.server = serving.Server(cls.engine, api_key=["first", "second"],
                                    api_key_file=cls.shared + "/keys", model_name="named")
        cls.addClassCleanup(cls.server.kill)

    def test_keys(self):
        for path in ("/v1/models", "/metrics", "/version", "/nothing"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer firs"},
                           {"Authorization": "Bearer firstt"}, {"Authorization": "Basic first"}):
                answer = self.server.get(path, headers=header)
                self.assert_error(answer, 401, kind="authentication_error")
                self.assertEqual(answer.headers["WWW-Authenticate"], "Bearer")
        for key in ("first", "second", "from-file"):
            answer = self.server.get("/v1/models", headers={"Authorization": "Bearer " + key})
            self.assertEqual([m["id"] for m in answer.json["data"]], ["named"])
        self.assertEqual(self.server.get("/health").status, 200)
        self.assertEqual(self.server.get("/health/ready").status, 200)
        answer = self.server.post("/v1/completions", {"prompt": PROMPT, "model": "named"},
                                  headers={"Authorization": "bearer second"})
        self.assertEqual(answer.status, 200)


if __name__ == "__main__":
    ostro.main()
