"""Tool calls and beams over HTTP, on one rank and on two; calls that a model makes by itself."""

import json
import os
import re

import scripted
import serving
from serving import PROMPT, ostro

CHAT = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]},
                "place": {"$ref": "#/$defs/Place"},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["unit", "place", "days"],
            "$defs": {"Place": {"type": "string", "pattern": "[a-z]{2,8}"}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def fits(call):
    """A call of WEATHER or NOW, by hand."""
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "now":
        return arguments == {}
    return (
        call["function"]["name"] == "get_weather"
        and list(arguments) == ["unit", "place", "days"]
        and arguments["unit"] in ("C", "F")
        and arguments["place"].islower() and 2 <= len(arguments["place"]) <= 8
        and 1 <= arguments["days"] <= 9
    )


def joined(events):
    """A streamed answer: its content, and its calls without ids."""
    content, calls = "", []
    for event in events:
        delta = event["choices"][0]["delta"]
        content += delta.get("content", "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                assert re.fullmatch("[a-zA-Z0-9]{9}", part["id"]), part
                name = part["function"]["name"]
                calls.append({"type": part["type"], "function": {"name": name, "arguments": ""}})
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return content, calls


def without_ids(choices):
    for choice in choices:
        for call in choice["message"].get("tool_calls", ()):
            assert len(call.pop("id")) == 9
    return choices


class Tools(serving.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        wide = ostro.build(os.path.join(cls.shared, "wide"), tp_size=2, world_size=2,
                           max_beam_width=4)
        cls.two = serving.Server(wide)
        cls.addClassCleanup(cls.two.kill)
        cls.one = serving.Server(wide, tp_size=1)
        cls.addClassCleanup(cls.one.kill)

    def chat(self, server, **fields):
        body = {"messages": CHAT, "tools": [WEATHER, NOW], "tool_choice": "required",
                "temperature": 1, "seed": 1, **fields}
        answer = server.post("/v1/chat/completions", body)
        self.assertEqual(answer.status, 200, answer.text)
        return answer

    def test_forced_calls(self):
        named = {"type": "function", "function": {"name": "get_weather"}}
        names = set()
        for seed in range(2):
            choice = self.chat(self.one, seed=seed).json["choices"][0]
            self.assertEqual(choice["finish_reason"], "tool_calls")
            self.assertIsNone(choice["message"]["content"])
            calls = choice["message"]["tool_calls"]
            self.assertTrue(1 <= len(calls) <= 16 and all(map(fits, calls)), calls)
            names |= {c["function"]["name"] for c in calls}
            only = self.chat(self.one, seed=seed, tool_choice=named).json["choices"][0]
            self.assertEqual([c["function"]["name"] for c in only["message"]["tool_calls"]],
                             ["get_weather"])
            self.assertTrue(fits(only["message"]["tool_calls"][0]))
            lone = self.chat(self.one, seed=seed, parallel_tool_calls=False).json["choices"][0]
            self.assertEqual(len(lone["message"]["tool_calls"]), 1)
        self.assertEqual(names, {"get_weather", "now"})

    def test_a_stream_tells_what_the_whole_answer_does(self):
        whole = self.chat(self.one, seed=0).json["choices"]
        events = self.chat(self.one, seed=0, stream=True).events
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "tool_calls")
        self.assertEqual(joined(events)[1], without_ids(whole)[0]["message"]["tool_calls"])
        self.assertGreater(sum(1 for e in events if "tool_calls" in e["choices"][0]["delta"]),
                           len(whole[0]["message"]["tool_calls"]))

    def test_a_conversation_goes_on(self):
        message = self.chat(self.one, parallel_tool_calls=False).json["choices"][0]["message"]
        talk = CHAT + [message] + [
            {"role": "tool", "tool_call_id": c["id"], "content": '{"sky": "blue"}'}
            for c in message["tool_calls"]]
        answer = self.one.post("/v1/chat/completions", {
            "messages": talk, "tools": [WEATHER, NOW], "tool_choice": "none", "max_tokens": 5})
        self.assertEqual(answer.status, 200, answer.text)
        with_tools = self.one.post("/tokenize", {"messages": talk, "tools": [NOW]}).json["count"]
        self.assertGreater(with_tools, self.one.post("/tokenize", {"messages": talk}).json["count"])

    def test_the_model_is_free_not_to_call(self):
        choice = self.chat(self.one, tool_choice="auto", max_tokens=8).json["choices"][0]
        self.assertNotIn("tool_calls", choice["message"])
        self.assertEqual(choice["finish_reason"], "length")

    def test_two_ranks_say_what_one_says(self):
        for seed, temperature in ((1, 0), (2, 1)):
            fields = {"seed": seed, "temperature": temperature, "n": 2}
            two, one = (
                without_ids(self.chat(s, parallel_tool_calls=False, **fields).json["choices"])
                for s in (self.two, self.one))
            self.assertEqual(two, one)
            guided = {**fields, "guided_json": WEATHER["function"]["parameters"], "max_tokens": 200}
            self.assertEqual(self.two.complete(**guided).json["choices"],
                             self.one.complete(**guided).json["choices"])

    def test_beams(self):
        fields = {"use_beam_search": True, "n": 2, "best_of": 4, "max_tokens": 20}
        best = self.one.complete(**fields).json
        self.assertEqual(best["choices"], self.two.complete(**fields).json["choices"])
        texts = [c["text"] for c in best["choices"]]
        self.assertEqual(len(set(texts)), 2)
        ran = self.ostro("run", "--engine_dir", os.path.join(self.shared, "wide"), "--tp_size", 1,
                         "--tokenizer_dir", ostro.TINY, "--input_text", PROMPT, "--num_beams", 4,
                         "--max_output_len", 20, "--early_stopping", 0,
                         "--num_return_sequences", 2).out
        for i, text in enumerate(texts):
            self.assertIn('Beam %d]: "%s"\n' % (i, text.lstrip()), ran)
        chat = self.one.post("/v1/chat/completions", {
            "messages": CHAT, "use_beam_search": True, "beam_width": 3, "length_penalty": 0,
            "early_stopping": "never", "max_tokens": 10})
        self.assertEqual(chat.status, 200, chat.text)
        self.assertTrue(chat.json["choices"][0]["message"]["content"])
        too_wide = self.server.post("/v1/completions", {"prompt": PROMPT, "use_beam_search": True,
                                                        "n": 2})
        self.assert_error(too_wide, 400, match="max_beam_width 1")

    def test_errors(self):
        for fields, param in (
            ({"tools": [{**NOW, "type": "x"}]}, "tools[0].type"),
            ({"tools": [NOW, NOW]}, "tools[1].function.name"),
            ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "a"}}},
             "tool_choice.function.name"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"messages": CHAT + [{"role": "tool", "tool_call_id": "x", "content": "y"}]},
             "messages[1].tool_call_id"),
            ({"use_beam_search": True, "stream": True}, "stream"),
        ):
            answer = self.server.post("/v1/chat/completions", {"messages": CHAT, **fields})
            self.assert_error(answer, 400, param)
        unknown = {"name": "f", "parameters": {"type": "object", "not": {}}}
        answer = self.server.post("/v1/chat/completions", {
            "messages": CHAT, "tool_choice": "required",
            "tools": [{"type": "function", "function": unknown}]})
        self.assert_error(answer, 400, match="\"not\", which is not supported")


class FreeCalls(ostro.Case):
    """Of a model that makes them as it was told to."""

    WEATHER = '{"place": "Orl\u00e9ans \\"}\\" ", "days": [1, {"z": 2}]}'
    SCRIPTS = {
        "<list>": 'Let me see.[TOOL_CALLS] [{"name": "get_weather", "arguments": %s}, '
                  '{"arguments": {"a": 0}, "name": "now"}]' % WEATHER,
        "<named>": '[TOOL_CALLS]now[ARGS]{} [TOOL_CALLS]get_weather{"place": 1}',
        "<wrong>": '[TOOL_CALLS][{"name": "now", "arguments": {"b" 3}}, and so on it goes',
        "<none>": '[TOOL_CALLS] {"name": "get_weather"} is no call',
    }

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        model = scripted.write(os.path.join(cls.shared, "model"), cls.SCRIPTS)
        engine = ostro.build(os.path.join(cls.shared, "engine"), model)
        cls.server = serving.Server(engine, tokenizer_dir=model)
        cls.addClassCleanup(cls.server.kill)

    def said(self, script, **fields):
        """(content, [(function, arguments)], finish reason, events of the stream)"""
        body = {"messages": [{"role": "user", "content": script}], "tools": [WEATHER, NOW],
                **fields}
        whole, stream = (self.server.post("/v1/chat/completions", {**body, "stream": stream})
                         for stream in (False, True))
        self.assertEqual((whole.status, stream.status), (200, 200), whole.text + stream.text)
        (choice,) = without_ids(whole.json["choices"])
        content, calls = joined(stream.events)
        finish = stream.events[-1]["choices"][0]["finish_reason"]
        self.assertEqual((choice["message"]["content"] or "", finish),
                         (content, choice["finish_reason"]))
        self.assertEqual(choice["message"].get("tool_calls", []), calls)
        return content, [tuple(c["function"].values()) for c in calls], finish, stream.events

    def test_calls_are_streamed_while_they_are_written(self):
        *said, events = self.said("<list>")
        self.assertEqual(said, ["Let me see.", [("get_weather", self.WEATHER), ("now", '{"a": 0}')],
                                "tool_calls"])
        parts = [e["choices"][0]["delta"]["tool_calls"][0] for e in events
                 if "tool_calls" in e["choices"][0]["delta"]]
        self.assertEqual(list(parts[0]), ["index", "id", "type", "function"])
        self.assertEqual({tuple(p) for p in parts[1:] if p["index"] == 0}, {("index", "function")})
        self.assertGreater(len([p for p in parts if p["index"] == 0]), 20)
        self.assertEqual(len([p for p in parts if p["index"] == 1]), 1, "its name came last")

    def test_other_forms(self):
        self.assertEqual(self.said("<named>")[:3],
                         ("", [("now", "{}"), ("get_weather", '{"place": 1}')], "tool_calls"))
        self.assertEqual(self.said("<named>", parallel_tool_calls=False)[:3],
                         ("", [("now", "{}")], "tool_calls"))
        self.assertEqual(self.said("<none>")[:3], (self.SCRIPTS["<none>"], [], "stop"))

    def test_calls_that_are_wrong_or_cut_off(self):
        *said, _ = self.said("<wrong>")
        self.assertEqual(said, ["", [("now", '{"b" 3}')], "stop"])
        content, calls, finish, _ = self.said("<list>", max_tokens=40)
        self.assertEqual((content, len(calls), finish), ("Let me see.", 1, "length"))
        self.assertTrue(self.WEATHER.startswith(calls[0][1]) and len(calls[0][1]) > 5, calls)
        self.assertEqual(self.said("<list>", stop="days")[:3],
                         ("Let me see.", [("get_weather", self.WEATHER.split("days")[0])], "stop"))


if __name__ == "__main__":
    ostro.main()
