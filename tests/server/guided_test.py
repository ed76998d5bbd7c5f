"""Guided decoding: whatever the model would say, the answers are what was asked for."""

import json
import re

import serving
from serving import PROMPT, ostro

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
}
CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]


def fits(value):
    """SCHEMA, by hand; the properties in its order."""
    return (
        list(value) == ["name", "age", "kind", "tags"]
        and isinstance(value["name"], str) and len(value["name"]) <= 12
        and type(value["age"]) is int and 0 <= value["age"] <= 150
        and value["kind"] in ("cat", "dog")
        and 1 <= len(value["tags"]) <= 3 and all(type(t) is bool for t in value["tags"])
    )


class Guided(serving.Case):
    SEQUENCES = 2  # of each request

    def texts(self, path="/v1/completions", n=None, **fields):
        """The texts of n sequences at temperature 1 that ended by themselves."""
        n = n or self.SEQUENCES
        body = {"temperature": 1, "max_tokens": 900, "seed": 1, "n": n, **fields}
        body.update({"prompt": PROMPT} if path == "/v1/completions" else {"messages": CHAT})
        answer = self.server.post(path, body)
        self.assertEqual(answer.status, 200, answer.text)
        choices = answer.json["choices"]
        self.assertEqual(len(choices), n)
        self.assertEqual({c["finish_reason"] for c in choices}, {"stop"}, choices)
        return [c["text"] if "text" in c else c["message"]["content"] for c in choices]

    def test_json_schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True,
                                                       "schema": SCHEMA}}
        for path in ("/v1/completions", "/v1/chat/completions"):
            seen = set()
            for seed in range(2):
                for text in self.texts(path, seed=seed, response_format=form):
                    self.assertTrue(fits(json.loads(text)), text)
                    seen.add(text)
            self.assertGreater(len(seen), self.SEQUENCES)
        for schema in (SCHEMA, json.dumps(SCHEMA)):
            for text in self.texts(guided_json=schema, ignore_eos=True):
                self.assertTrue(fits(json.loads(text)), text)
        for text in self.texts(guided_json=SCHEMA, temperature=0, n=1, min_tokens=None):
            self.assertTrue(fits(json.loads(text)), text)

    def test_regex_choice_and_grammar(self):
        regex = r"[a-z]{2,8}(, [a-z]{2,8}){1,3}\."
        for path in ("/v1/completions", "/v1/chat/completions"):
            for text in self.texts(path, guided_regex=regex):
                self.assertTrue(re.fullmatch(regex, text), text)
        choices = ["a dog", "a cat", "größer \"x\""]
        self.assertLessEqual(set(self.texts(n=4, guided_choice=choices)), set(choices))
        grammar = 'root ::= sum\nsum ::= number (" + " number){1,5}\nnumber ::= [1-9][0-9]{0,3}'
        for text in self.texts(guided_grammar=grammar, frequency_penalty=1):
            self.assertTrue(re.fullmatch(r"[1-9]\d{0,3}( \+ [1-9]\d{0,3}){1,5}", text), text)

    def test_an_object_that_is_cut_off_says_so(self):
        answer = self.server.complete(response_format={"type": "json_object"}, max_tokens=1)
        self.assertTrue(answer.json["choices"][0]["text"].startswith("{"), answer.text)
        self.assertEqual(answer.json["choices"][0]["finish_reason"], "length")

    def test_log_probs_are_the_models(self):
        free = self.server.complete(max_tokens=1, logprobs=20).json["choices"][0]["logprobs"]
        token, log_prob = list(free["top_logprobs"][0].items())[7]
        guided = self.server.complete(max_tokens=1, logprobs=20, guided_choice=[token]).json
        self.assertEqual(guided["choices"][0]["text"], token)
        self.assertAlmostEqual(guided["choices"][0]["logprobs"]["token_logprobs"][0], log_prob, 5)

    def test_a_stream_and_its_seed(self):
        body = {"messages": CHAT, "temperature": 1, "seed": 5, "guided_json": SCHEMA}
        whole = self.server.post("/v1/chat/completions", body).json["choices"][0]
        events = self.server.post("/v1/chat/completions", {**body, "stream": True}).events
        text = "".join(c["delta"].get("content", "") for e in events for c in e["choices"])
        self.assertEqual(text, whole["message"]["content"])
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "stop")

    def test_errors(self):
        for fields, param, part in (
            ({"guided_regex": "a["}, "", "Unclosed"),
            ({"guided_regex": "a{1,99999}"}, "", "99999 symbols"),
            ({"guided_json": {"type": "foo"}}, "", "foo"),
            ({"guided_json": {"not": {}}}, "", "not supported"),
            ({"guided_grammar": "root ::= x"}, "", "not defined"),
            ({"guided_choice": []}, "", "1 to 1024"),
            ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "both"),
            ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
             "response_format.json_schema.schema", "missing"),
        ):
            for stream in (False, True):
                answer = self.server.post("/v1/completions",
                                          {"prompt": PROMPT, "stream": stream, **fields})
                self.assertEqual(answer.status, 400, fields)
                self.assertIn(part, answer.json["error"]["message"])
                self.assertEqual(answer.json["error"]["param"] or "", param)
        self.server.complete(max_tokens=1)


if __name__ == "__main__":
    ostro.main()
