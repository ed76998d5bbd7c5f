"""The page at "/" in a real, headless Chromium. Screenshots go to build/page-screenshots.

Exit code 77 where there is no Chromium: ctest calls that skipped.
"""

import json
import os
import sys

import chromium
import serving
from serving import ostro

SCREENSHOTS = os.environ.get("OSTRO_SCREENSHOTS",
                             os.path.join(ostro.SOURCE, "build", "page-screenshots"))
ANSWER = "[...document.querySelectorAll('#messages li.assistant')].at(-1)"
DONE = "!document.querySelector('#messages li.open') && !document.querySelector('#send').hidden"


def value(element):
    return "document.getElementById('%s').value" % element


def shown(element):
    return "document.getElementById('%s').textContent" % element


class Page(ostro.Case):
    """A page of self.server, which comes from the class or from setUp."""

    def setUp(self):
        super().setUp()
        self.browser = chromium.Browser()
        self.addCleanup(self.browser.close)
        self.browser.look_like(1280, 800)
        self.open()

    def open(self):
        self.browser.open("http://127.0.0.1:%d/" % self.server.port)
        self.browser.wait(shown("model"))

    def tearDown(self):
        self.assertEqual(self.browser.errors, [])
        super().tearDown()

    def focus(self):
        return self.browser.js("document.activeElement.id")

    def tab_to(self, element):
        for _ in range(20):
            if self.focus() == element:
                return
            self.browser.press("Tab")
        self.fail("the Tab key does not reach #" + element)

    def ask(self, question):
        self.browser.click("#question")
        self.browser.type(question)
        self.browser.press("Enter")


class Chat(Page, serving.Case):
    def test_an_answer_is_that_of_the_api(self):
        self.tab_to("temperature")
        self.browser.press("Home")
        question = "Tell me a story about <b>a dog</b> & a \"cat\"."
        self.ask(question)
        self.browser.wait(DONE + " && !!" + ANSWER)
        messages = [{"role": "user", "content": question}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 256}
        want = self.server.post("/v1/chat/completions", body).json
        self.assertEqual(self.browser.js(ANSWER + ".textContent"),
                         want["choices"][0]["message"]["content"])
        self.assertEqual(self.browser.js("document.querySelector('li.user').textContent"), question)
        self.assertEqual(self.browser.js(value("question")), "")
        # The conversation goes on with both.
        self.ask("And then?")
        self.browser.wait("document.querySelectorAll('#messages li').length === 4 && " + DONE)
        body["messages"] = [*messages, want["choices"][0]["message"],
                            {"role": "user", "content": "And then?"}]
        want = self.server.post("/v1/chat/completions", body).json
        self.assertEqual(self.browser.js(ANSWER + ".textContent"),
                         want["choices"][0]["message"]["content"])

    def test_everything_is_reached_by_keyboard(self):
        self.assertEqual(self.focus(), "question")
        self.browser.type("one")
        self.browser.press("Enter", chromium.SHIFT)
        self.browser.type("two")
        self.assertEqual(self.browser.js(value("question")), "one\ntwo")
        for name, step in (("temperature", 0.05), ("top_p", 0.05), ("top_k", 1), ("max_tokens", 16)):
            self.tab_to(name)
            self.browser.press("Home")
            least = float(self.browser.js(value(name)))
            self.browser.press("ArrowRight")
            self.assertAlmostEqual(float(self.browser.js(value(name))), least + step)
            self.assertEqual(self.browser.js("document.querySelector('output[for=%s]').value" % name),
                             self.browser.js(value(name)))
        self.tab_to("send")
        self.browser.press(" ")
        self.browser.wait(DONE + " && !!" + ANSWER)
        self.assertEqual(self.focus(), "question")
        self.tab_to("clear")
        self.browser.press("Enter")
        self.assertEqual(self.browser.js("document.querySelectorAll('#messages li').length"), 0)
        self.assertEqual(self.focus(), "question")

    def test_an_error_gives_the_question_back(self):
        long = "word " * 2000
        self.ask(long)
        error = self.browser.wait("!document.getElementById('error').hidden && " + shown("error"))
        self.assertRegex(error, r"^No answer: the prompt has \d+ tokens")
        self.assertEqual(self.browser.js(value("question")), long.strip())
        self.browser.wait(DONE)
        self.assertEqual(self.browser.js("document.querySelectorAll('#messages li').length"), 0)
        self.assertEqual(len(self.browser.errors), 1)
        self.assertIn("400", self.browser.errors.pop())  # Chromium logs each such answer

    def test_the_live_view_shows_what_the_metrics_say(self):
        self.assertEqual(self.browser.js("document.querySelectorAll('#experts title').length"), 8)
        self.ask("Tell me a story.")
        self.browser.wait(DONE + " && !!" + ANSWER)
        self.browser.wait("parseFloat(%s) > 0" % shown("rate"))
        shares = self.browser.wait(
            "(() => { const all = [...document.querySelectorAll('#experts title')]"
            ".map((t) => parseFloat(t.textContent.match(/: ([0-9.]+) %$/)[1]));"
            "return all.some((x) => x > 0) && all; })()")
        self.assertAlmostEqual(sum(shares), 100, delta=0.5)
        heights = self.browser.js("[...document.querySelectorAll('#experts rect')]"
                                  ".map((r) => Number(r.getAttribute('height')))")
        for height, share in zip(heights, shares):
            self.assertAlmostEqual(height, 44 * share / max(shares), delta=0.3)
        self.assertRegex(self.browser.js(shown("busiest")), r"^[1-9]\.\d\d × its share$")
        points = self.browser.js("document.querySelector('#history polyline').getAttribute('points')")
        self.assertGreaterEqual(len(points.split()), 1)

    def test_looks(self):
        self.ask("Tell me a story about a dog.")
        self.browser.wait(DONE + " && !!" + ANSWER)
        self.ask("What did the dog find in the garden?")
        self.browser.wait("document.querySelectorAll('#messages li').length === 4 && " + DONE)
        self.browser.type("And how does it end?")
        self.browser.wait("parseFloat(%s) >= 0 && parseFloat(%s) > 0" % (shown("rate"), shown("busiest")))
        os.makedirs(SCREENSHOTS, exist_ok=True)
        for name, width, height, scale in (("desktop", 1280, 800, 1), ("phone", 390, 844, 2)):
            for dark in (False, True):
                with self.subTest(size=name, dark=dark):
                    self.browser.look_like(width, height, scale, name == "phone", dark)
                    self.browser.wait("innerWidth === %d" % width)
                    path = "%s-%s.png" % (name, "dark" if dark else "light")
                    self.browser.screenshot(os.path.join(SCREENSHOTS, path), whole=name == "phone")
                    self.check_look(dark)

    def check_look(self, dark):
        self.assertEqual(self.browser.js("document.documentElement.scrollWidth <= innerWidth"), True,
                         "it scrolls sideways")
        contrasts = self.browser.js(CONTRASTS)
        self.assertGreater(len(contrasts), 15)
        for text, contrast, light in contrasts:
            self.assertGreaterEqual(contrast, 4.5, text)  # WCAG 2.2, 1.4.3
            if text == "Ostro":
                self.assertEqual(light, dark)
        small = self.browser.js(
            "[...document.querySelectorAll('button, input, textarea')].filter((e) => e.offsetWidth && "
            "(e.offsetHeight < 24 || e.getBoundingClientRect().right > innerWidth)).map((e) => e.id)")
        self.assertEqual(small, [])  # WCAG 2.2, 2.5.8


# [text, its contrast with what is behind it, whether it is light] of each element with text.
CONTRASTS = """(() => {
  const channels = (color) => color.match(/[0-9.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    const color = getComputedStyle(e).backgroundColor;
    return channels(color)[3] === 0 && e.parentElement ? behind(e.parentElement) : color;
  };
  const visible = (e) => e.offsetWidth > 1 && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll('*')].filter(visible).map((e) => {
    const [text, back] = [luminance(getComputedStyle(e).color), luminance(behind(e))];
    const [low, high] = [Math.min(text, back), Math.max(text, back)];
    return [e.textContent.trim(), (high + 0.05) / (low + 0.05), text > back];
  });
})()"""


class LongAnswers(Page):
    """A model of random weights with a context of 32768 tokens: its greedy answers do not end."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.engine = os.path.join(cls.shared, "long")
        model = os.path.join(cls.shared, "model")
        os.mkdir(model)
        config = {**ostro.read_json(ostro.TINY, "config.json"), "max_position_embeddings": 32768}
        with open(os.path.join(model, "config.json"), "w") as f:
            json.dump(config, f)
        ostro.build(cls.engine, model)

    def setUp(self):
        self.server = serving.Server(self.engine)
        self.addCleanup(self.server.kill)
        super().setUp()
        self.tab_to("temperature")
        self.browser.press("Home")
        self.tab_to("max_tokens")
        self.browser.press("End")

    def begin(self):
        self.ask("Go on and on.")
        length = self.browser.wait(ANSWER + "?.textContent.length")
        self.browser.wait("%s.textContent.length > %d" % (ANSWER, length))  # it streams
        self.assertTrue(self.browser.js("document.getElementById('send').hidden"))

    def stopped(self):
        self.browser.wait(DONE)
        text = self.browser.js(ANSWER + ".textContent")
        self.server.wait_for(lambda m: m["ostro_requests_running"] == 0 and
                             m['ostro_requests_ended_total{outcome="cancelled"}'] >= 1,
                             "the request is cancelled")
        self.assertEqual(self.browser.js(ANSWER + ".textContent"), text)
        self.assertTrue(self.browser.js("document.getElementById('error').hidden"))

    def test_escape_stops(self):
        self.begin()
        self.browser.press("Escape")
        self.stopped()
        self.assertEqual(self.focus(), "question")

    def test_the_button_stops(self):
        self.begin()
        self.browser.click("#stop")
        self.stopped()
        self.begin()
        self.tab_to("stop")
        self.browser.press("Enter")
        self.stopped()

    def test_a_new_chat_stops_and_forgets(self):
        self.begin()
        self.browser.click("#clear")
        self.browser.wait("document.querySelectorAll('#messages li').length === 0 && " + DONE)
        self.begin()
        self.assertEqual(self.browser.js("messages.length"), 1)
        self.browser.press("Escape")
        self.stopped()

    def test_the_server_goes(self):
        self.begin()
        self.server.process.kill()
        error = self.browser.wait("!document.getElementById('error').hidden && " + shown("error"))
        self.assertEqual(error, "The answer broke off: the server cannot be reached")
        self.browser.wait(DONE)
        self.assertGreater(self.browser.js(ANSWER + ".textContent.length"), 0)
        self.browser.wait(shown("rate") + " === 'no view: the server cannot be reached'")
        os.makedirs(SCREENSHOTS, exist_ok=True)
        self.browser.screenshot(os.path.join(SCREENSHOTS, "server-gone.png"))
        # And a question to nobody comes back.
        self.ask("Are you there?")
        self.browser.wait(shown("error") + " === 'No answer: the server cannot be reached'")
        self.assertEqual(self.browser.js(value("question")), "Are you there?")
        self.assertTrue(self.browser.errors)
        self.browser.errors.clear()  # each failed request is one


if __name__ == "__main__":
    if not chromium.program():
        print("there is no Chromium: tools/deps.sh --slow installs it on Debian")
        sys.exit(77)
    ostro.main()
