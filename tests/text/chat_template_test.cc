#include "text/chat_template.h"

#include "base/temp_dir.h"
#include "text/goldens.h"

namespace ostro::txt {
namespace {

const ChatTemplate::Ends kEnds{.bos = "<s>", .eos = "</s>"};
const std::vector<ChatMessage> kTalk = {
    {"user", "Hi \"you\"\n"}, {"assistant", "Hello."}, {"user", "Bye"}};

// The template of Mixtral-8x7B-Instruct-v0.1, in outline.
constexpr const char* kMixtral =
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}";

TEST(ChatTemplate, MistralsFormIsThatOfMixtralsTemplate) {
  const std::string want = "<s>[INST] Hi \"you\"\n [/INST] Hello.</s>[INST] Bye [/INST]";
  EXPECT_EQ(ChatTemplate::mistral(kEnds).render(kTalk, true), want);
  EXPECT_EQ(ChatTemplate::from_jinja(kMixtral, kEnds).render(kTalk, true), want);
}

TEST(ChatTemplate, MistralsFormPutsTheSystemMessageFirst) {
  const std::vector<ChatMessage> talk = {{"system", "Be brief."}, {"user", "Hi"}};
  EXPECT_EQ(ChatTemplate::mistral(kEnds).render(talk, true), "<s>[INST] Be brief.\n\nHi [/INST]");
}

TEST(ChatTemplate, MistralsFormRefusesOtherOrders) {
  const auto refused = [](std::vector<ChatMessage> talk, std::initializer_list<const char*> words) {
    return throws<InvalidArgument>([&] { ChatTemplate::mistral(kEnds).render(talk, true); }, words);
  };
  EXPECT_TRUE(refused({{"user", "a"}, {"user", "b"}}, {"message 1", "alternate"}));
  EXPECT_TRUE(refused({{"assistant", "a"}}, {"message 0", "assistant"}));
  EXPECT_TRUE(refused({{"user", "a"}, {"system", "b"}}, {"message 1", "system"}));
  EXPECT_TRUE(refused({{"system", "b"}}, {"system message alone"}));
}

TEST(ChatTemplate, RaisedErrorsAreTheTemplatesOwnWords) {
  const auto chat = ChatTemplate::from_jinja(kMixtral, kEnds);
  const std::vector<ChatMessage> talk = {{"tool", "x"}};
  try {
    chat.render(talk, true);
    FAIL();
  } catch (const InvalidArgument& e) {
    EXPECT_STREQ(e.what(), "Conversation roles must alternate user/assistant/user/assistant/...");
  }
}

TEST(ChatTemplate, SeesTheGenerationPromptAndTools) {
  const auto chat = ChatTemplate::from_jinja(
      "{%- for m in messages %}\n"
      "    {%- if m.role == 'user' -%}\n<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}\n"
      "    {%- endif %}\n{%- endfor %}\n"
      "{%- if tools is not none %}TOOLS{% endif %}"
      "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n",
      kEnds);
  const std::vector<ChatMessage> talk = {{"user", "  a "}, {"assistant", "b"}};
  EXPECT_EQ(chat.render(talk, true), "<|user|>a</s><|assistant|>");
  EXPECT_EQ(chat.render(talk, false), "<|user|>a</s>");
}

constexpr const char* kTools =
    R"([{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": "é"}}}])";
const std::vector<ChatMessage> kToolTalk = {
    {"user", "Weather?"},
    {.role = "assistant",
     .content = "",
     .tool_calls = {{"abcdefghi", "f", R"({"z":1,"a":[2]})"}, {"abcdefghj", "g", "{}"}}},
    {.role = "tool", .content = R"({"b":1,"a":2})", .tool_call_id = "abcdefghi"},
    {.role = "tool", .content = "21 \"C\"", .tool_call_id = "abcdefghj", .name = "g"}};

TEST(ChatTemplate, MistralsFormHasToolsCallsAndResults) {
  EXPECT_EQ(ChatTemplate::mistral(kEnds).render(kToolTalk, true, kTools),
            R"(<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "f", )"
            R"("parameters": {"z": 1, "a": "é"}}}][/AVAILABLE_TOOLS][INST] Weather? [/INST])"
            R"([TOOL_CALLS] [{"name": "f", "arguments": {"z": 1, "a": [2]}, "id": "abcdefghi"}, )"
            R"({"name": "g", "arguments": {}, "id": "abcdefghj"}]</s>)"
            R"([TOOL_RESULTS] {"content": {"b": 1, "a": 2}, "call_id": "abcdefghi"}[/TOOL_RESULTS])"
            R"([TOOL_RESULTS] {"content": "21 \"C\"", "call_id": "abcdefghj"}[/TOOL_RESULTS])");
  std::vector<ChatMessage> more = kToolTalk;
  more.push_back({"assistant", "Mild."});
  more.push_back({"user", "Thanks"});
  EXPECT_TRUE(ChatTemplate::mistral(kEnds)
                  .render(more, true, "[]")
                  .ends_with("[/TOOL_RESULTS] Mild.</s>[AVAILABLE_TOOLS] [][/AVAILABLE_TOOLS]"
                             "[INST] Thanks [/INST]"));
}

TEST(ChatTemplate, MistralsFormRefusesResultsThatNobodyWaitsFor) {
  const auto refused = [](std::vector<ChatMessage> talk, std::initializer_list<const char*> words) {
    return throws<InvalidArgument>([&] { ChatTemplate::mistral(kEnds).render(talk, true); }, words);
  };
  std::vector<ChatMessage> talk(kToolTalk.begin(), kToolTalk.end() - 1);
  EXPECT_TRUE(refused(talk, {"1 tool calls", "no result"}));
  talk.push_back({"user", "Well?"});
  EXPECT_TRUE(refused(talk, {"1 tool calls", "no result"}));
  talk = kToolTalk;
  talk.push_back({"user", "Well?"});
  EXPECT_TRUE(refused(talk, {"message 4", "alternate"}));
  talk.back() = kToolTalk.back();
  EXPECT_TRUE(refused(talk, {"message 4", "no call"}));
}

TEST(ChatTemplate, AResultThatNestsTooDeepStandsAsText) {
  std::vector<ChatMessage> talk = kToolTalk;
  talk[2].content = std::string(100000, '[');
  EXPECT_NE(ChatTemplate::mistral(kEnds).render(talk, true).find("\"[[[["), std::string::npos);
}

// As templates of Mistral's instruction models go through tools, in outline.
TEST(ChatTemplate, TemplatesSeeToolsCallsAndResults) {
  const auto chat = ChatTemplate::from_jinja(
      "{% if tools is not none %}{% for tool in tools %}{% set tool = tool.function %}"
      "{% for key, value in tool.items() if key != 'return' %}{{ key }}={{ value | tojson }};"
      "{% endfor %}{% endfor %}{% endif %}"
      "{% for m in messages %}"
      "{% if m.tool_calls is defined and m.tool_calls is not none %}"
      "{% for call in m.tool_calls %}{% set out = call.function | tojson %}"
      "{{ out[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
      "{% if call.id | length != 9 %}{{ raise_exception('id') }}{% endif %}{% endfor %}"
      "{% elif m.role == 'tool' %}<{{ m.content | string }}|{{ m.tool_call_id }}|{{ m.name }}>"
      "{% else %}{{ m.content }}{% endif %}{% endfor %}",
      kEnds);
  EXPECT_EQ(chat.render(kToolTalk, true, kTools),
            R"(name="f";parameters={"z": 1, "a": "é"};Weather?)"
            R"({"name": "f", "arguments": {"z": 1, "a": [2]}, "id": "abcdefghi"})"
            R"({"name": "g", "arguments": {}, "id": "abcdefghj"})"
            R"(<{"b":1,"a":2}|abcdefghi|><21 "C"|abcdefghj|g>)");
}

TEST(ChatTemplate, BlocksTakeTheirLine) {
  const auto chat =
      ChatTemplate::from_jinja("{% if true %}\n  {% set x = 1 %}\nx{{ x }}\n{% endif %}\n", kEnds);
  EXPECT_EQ(chat.render({}, false), "x1\n");
}

TEST(ChatTemplate, KnowsTheDate) {
  const auto chat = ChatTemplate::from_jinja("{{ strftime_now('%Y') }}", kEnds);
  EXPECT_EQ(chat.render({}, false).substr(0, 2), "20");
}

TEST(ChatTemplate, BrokenTemplatesAreRefused) {
  EXPECT_TRUE(throws<InvalidArgument>(
      [] { ChatTemplate::from_jinja("a\n{% if %}", kEnds, "C.json"); }, {"C.json"}));
  EXPECT_TRUE(throws<InvalidArgument>(
      [] { ChatTemplate::from_jinja("{% for m in messages %}", kEnds, "C.json"); }, {"C.json"}));
  const auto chat = ChatTemplate::from_jinja("{{ nothing.at.all() }}", kEnds, "C.json");
  EXPECT_TRUE(throws<InvalidArgument>([&] { chat.render({}, true); }, {"C.json", "fails"}));
}

TEST(ChatTemplate, LoadPrefersTheFileThenTheConfigThenMistrals) {
  const auto tokenizer = tiny_mixtral();
  TempDir dir;
  const auto load = [&] { return ChatTemplate::load(dir.path(), *tokenizer); };
  EXPECT_EQ(load().name(), "Mistral's form");
  EXPECT_EQ(load().render(std::vector<ChatMessage>{{"user", "q"}}, true), "<s>[INST] q [/INST]");
  write_bytes(dir / "tokenizer_config.json",
              R"({"bos_token": "<B>",
                   "chat_template": [{"name": "default",
                                      "template": "{{ bos_token }}D{{ eos_token }}"}]})");
  EXPECT_EQ(load().render({}, true), "<B>D</s>");
  write_bytes(dir / "chat_template.jinja", "J{{ bos_token }}");
  EXPECT_EQ(load().render({}, true), "J<B>");
}

TEST(ChatTemplate, OneOfSeveralMustBeTheDefault) {
  const auto tokenizer = tiny_mixtral();
  TempDir dir;
  write_bytes(dir / "tokenizer_config.json",
              R"({"chat_template": [{"name": "rag", "template": "R"}]})");
  EXPECT_TRUE(throws<InvalidArgument>([&] { ChatTemplate::load(dir.path(), *tokenizer); },
                                      {"default", "rag"}));
}

TEST(ChatTemplate, RenderedTextEncodesToOneBos) {
  const auto tokenizer = tiny_mixtral();
  const auto text = ChatTemplate::mistral(kEnds).render(kTalk, true);
  const Ids ids = tokenizer->encode(text, {.add_special_tokens = false, .parse_special = true});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 1);
  EXPECT_EQ(ids.front(), 1);
}

}  // namespace
}  // namespace ostro::txt
