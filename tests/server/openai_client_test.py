"""`ostro serve` as OpenAI's own Python client sees it.

The client is installed from PyPI into the virtual environment OSTRO_VENV (build/openai-venv), where
this file then runs itself.
"""

import concurrent.futures
import json
import os
import subprocess
import sys

import scripted
import serving
from serving import PROMPT, ostro

CLIENT = "openai==3.57.0"
MESSAGES = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": "Tell me one about a dog."},
]

try:
    import openai
except ImportError:
    openai = None


TOOLS = [
    {"type": "function", "function": {
        "name": "find_dog",
        "parameters": {"type": "object", "properties": {
            "breed": {"enum": ["poodle", "beagle"]}, "age": {"type": "integer", "minimum": 0, "maximum": 20}},
            "required": ["breed", "age"]}}},
    {"type": "function", "function": {"name": "list_dogs"}},
]


class Client(serving.Case):
    FLAGS = {"api_key": "secret", "max_batch_size": 8}
    BUILD = {"max_beam_width": 4}

    def setUp(self):
        super().setUp()
        self.client = self.make()
        self.addCleanup(self.client.close)

    def make(self, **options):
        options = {"api_key": "secret", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % self.server.port, **options)

    def complete(self, **fields):
        fields = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": 0, **fields}
        return self.client.completions.create(**fields)

    def chat(self, **fields):
        fields = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "temperature": 0, **fields}
        return self.client.chat.completions.create(**fields)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["tiny"])
        self.assertEqual(self.client.models.retrieve("tiny").owned_by, "ostro")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4")

    def test_completions(self):
        whole = self.complete(logprobs=2, echo=True, n=2, user="me", seed=1)
        self.assertEqual(len(whole.choices), 2)
        self.assertTrue(whole.choices[0].text.startswith(PROMPT))
        self.assertEqual(whole.usage.completion_tokens, 40)
        self.assertEqual(len(whole.choices[0].logprobs.top_logprobs[3]), 2)
        parts = list(self.complete(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(p.choices[0].text for p in parts[:-1]), self.complete().choices[0].text)
        self.assertEqual(parts[-1].usage.completion_tokens, 20)
        stop = self.complete().choices[0].text[10:14]
        self.assertEqual(self.complete(stop=[stop]).choices[0].finish_reason, "stop")

    def test_chats(self):
        whole = self.chat(logprobs=True, top_logprobs=3, n=2)
        self.assertEqual(whole.choices[1].message.role, "assistant")
        self.assertEqual(len(whole.choices[0].logprobs.content[0].top_logprobs), 3)
        parts = list(self.chat(stream=True))
        self.assertEqual(parts[0].choices[0].delta.role, "assistant")
        text = "".join(p.choices[0].delta.content or "" for p in parts)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(parts[-1].choices[0].finish_reason, whole.choices[0].finish_reason)
        extra = self.chat(extra_body={"top_k": 1, "min_p": 0.1}, temperature=1)
        self.assertEqual(extra.choices[0].message.content, text)

    def test_a_forced_tool_and_its_result(self):
        choice = self.chat(tools=TOOLS, max_tokens=200, parallel_tool_calls=False, tool_choice={
            "type": "function", "function": {"name": "find_dog"}}).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        (call,) = choice.message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "find_dog"))
        self.assertIn(json.loads(call.function.arguments)["breed"], ("poodle", "beagle"))
        talk = [*MESSAGES, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "Rex"}]
        answer = self.chat(messages=talk, tools=TOOLS).choices[0]
        self.assertIsNone(answer.message.tool_calls)
        self.assertTrue(answer.message.content)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(messages=[*talk, talk[-1]], tools=TOOLS)
        self.assertEqual(caught.exception.param, "messages[4].tool_call_id")

    def test_streamed_tools(self):
        fields = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 700,
                  "temperature": 1, "seed": 1}
        whole = self.chat(**fields).choices[0]
        with self.client.chat.completions.stream(model="tiny", messages=MESSAGES, **fields) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion().choices[0]
        self.assertIn("tool_calls.function.arguments.delta", kinds)
        self.assertEqual(kinds.count("tool_calls.function.arguments.done"),
                         len(whole.message.tool_calls))
        self.assertEqual(final.finish_reason, "tool_calls")
        self.assertEqual([(c.function.name, c.function.arguments) for c in final.message.tool_calls],
                         [(c.function.name, c.function.arguments) for c in whole.message.tool_calls])

    def test_a_call_that_the_model_makes_by_itself(self):
        arguments = '{"breed": "poodle", "age": 3}'
        script = '[TOOL_CALLS] [{"name": "find_dog", "arguments": %s}]' % arguments
        model = scripted.write(self.path("model"), {"<find>": script})
        server = serving.Server(ostro.build(self.path("engine"), model), tokenizer_dir=model)
        self.addCleanup(server.kill)
        with openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % server.port, api_key="-",
                           max_retries=0, timeout=60) as client:
            fields = {"model": "engine", "tools": TOOLS,
                      "messages": [{"role": "user", "content": "<find>"}]}
            whole = client.chat.completions.create(**fields).choices[0]
            with client.chat.completions.stream(**fields) as stream:
                kinds = [event.type for event in stream]
                streamed = stream.get_final_completion().choices[0]
        for choice in whole, streamed:
            (call,) = choice.message.tool_calls
            self.assertEqual((call.function.name, call.function.arguments, choice.finish_reason),
                             ("find_dog", arguments, "tool_calls"))
        self.assertGreater(kinds.count("tool_calls.function.arguments.delta"), 10)
        self.assertEqual(kinds.count("tool_calls.function.arguments.done"), 1)

    def test_beams(self):
        extra = {"use_beam_search": True, "best_of": 4, "early_stopping": True}
        best = self.complete(n=2, extra_body=extra)
        self.assertEqual(len({c.text for c in best.choices}), 2)
        self.assertTrue(self.chat(extra_body=extra).choices[0].message.content)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(stream=True, extra_body=extra)
        self.assertEqual(caught.exception.param, "stream")

    def test_errors(self):
        for error, fields in ((openai.BadRequestError, {"temperature": 3}),
                              (openai.BadRequestError, {"max_tokens": 5000}),
                              (openai.BadRequestError, {"extra_body": {"guided_regex": "(a"}}),
                              (openai.BadRequestError, {"extra_body": {"no_such_field": 1}}),
                              (openai.NotFoundError, {"model": "gpt-4"})):
            with self.assertRaises(error) as caught:
                self.chat(**fields)
            self.assertTrue(caught.exception.body["message"])
        with self.assertRaises(openai.AuthenticationError):
            self.make(api_key="wrong").models.list()

    def test_a_stream_that_is_closed_frees_its_slot(self):
        stream = self.complete(max_tokens=1000, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        headers = {"Authorization": "Bearer secret"}
        for _ in range(100):
            if "ostro_requests_running 0\n" in self.server.get("/metrics", headers=headers).text:
                return
        self.fail("it still runs")

    def test_many_at_once(self):
        alone = [self.complete(prompt="%s %d" % (PROMPT, i)).choices[0].text for i in range(32)]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            together = list(pool.map(
                lambda i: self.complete(prompt="%s %d" % (PROMPT, i)).choices[0].text, range(32)))
        self.assertEqual(together, alone)


def main():
    if openai:
        return ostro.main()
    venv = os.path.abspath(os.environ.get("OSTRO_VENV", "build/openai-venv"))
    python = os.path.join(venv, "bin", "python")
    if os.path.abspath(sys.prefix) == venv:
        raise SystemExit("%s has no %s" % (venv, CLIENT))
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", CLIENT], check=True)
    return subprocess.run([python, os.path.abspath(__file__), *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
