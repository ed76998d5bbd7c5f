#include "server/tool_calls.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "server/api_error.h"

namespace ostro::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

const char* const kTools = R"([
  {"type": "function", "function": {"name": "weather", "description": "d", "strict": true,
   "parameters": {"type": "object", "properties": {"z": {"$ref": "#/$defs/Z"}, "enum": {"$ref": "#/$defs/Z"}},
                  "required": ["z"], "$defs": {"Z": {"enum": [{"$ref": "#/$defs/Z"}]}}}}},
  {"type": "function", "function": {"name": "now"}}])";

std::optional<ToolUse> read(const std::string& body) {
  const json parsed = json::parse(body);
  Fields fields(parsed);
  auto use = read_tools(fields, body);
  fields.refuse_others();
  return use;
}
std::string body(const std::string& tools, const std::string& more = "") {
  return R"({"tools": )" + tools + more + "}";
}
ToolUse use(const std::string& more = "") { return *read(body(kTools, more)); }

struct Told {
  std::string text;  // "content|weather{...}+now{...}"
  bool ended = false, whole = false;
  bool operator==(const Told&) const = default;
};
void PrintTo(const Told& told, std::ostream* out) {
  *out << told.text << (told.ended ? " ended" : "") << (told.whole ? " whole" : "");
}

Told told(const ToolUse& use, const std::vector<std::string_view>& pieces) {
  ToolCallReader reader(use);
  ToolCallReader::Said all;
  const auto take = [&](ToolCallReader::Said said) {
    all.content += said.content;
    for (ToolCallDelta& d : said.calls) all.calls.push_back(std::move(d));
  };
  for (const std::string_view piece : pieces) take(reader.push(piece));
  all.content += reader.finish();
  Told told{.text = all.content + '|', .ended = reader.ended(), .whole = reader.only_whole_calls()};
  std::size_t calls = 0;
  for (const ToolCallDelta& d : all.calls) {
    if (d.index == calls) {
      told.text += (calls++ ? "+" : "") + d.name;
      EXPECT_EQ(d.id.size(), 9u);
      for (const char c : d.id) EXPECT_TRUE(std::isalnum(static_cast<unsigned char>(c))) << d.id;
    } else {
      EXPECT_EQ(d.index + 1, calls);
      EXPECT_EQ(d.name + d.id, "");
    }
    EXPECT_NE(d.arguments, "");
    told.text += d.arguments;
  }
  return told;
}

// Of the whole answer, which any two and three parts of it, and its bytes one by one, must give
// too.
Told told(const ToolUse& use, std::string_view answer) {
  const Told whole = told(use, std::vector{answer});
  std::vector<std::string_view> bytes;
  for (std::size_t i = 0; i < answer.size(); ++i) bytes.push_back(answer.substr(i, 1));
  EXPECT_EQ(told(use, bytes), whole);
  for (std::size_t i = 0; i < answer.size(); ++i)
    for (std::size_t j = i; j < answer.size(); ++j)
      EXPECT_EQ(told(use, {answer.substr(0, i), answer.substr(i, j - i), answer.substr(j)}), whole)
          << i << ", " << j;
  return whole;
}
Told told(const std::string& answer) { return told(use(), answer); }
Told whole(std::string text) { return {.text = std::move(text), .whole = true}; }
Told ended(std::string text) { return {.text = std::move(text), .ended = true}; }
Told open(std::string text) { return {.text = std::move(text)}; }

TEST(ToolCalls, FreeCallsAreToldAsTheyAreWritten) {
  EXPECT_EQ(
      told(R"([TOOL_CALLS] [{"name": "weather", "arguments": {"z":1 , "a": "[TOOL_CALLS]"}}])"),
      whole(R"(|weather{"z":1 , "a": "[TOOL_CALLS]"})"));
  EXPECT_EQ(told("Well. [TOOL_CALLS][{\"name\":\"now\",\"arguments\":{},\"id\":[\"x\"]},\n"
                 "{\"arguments\": {\"b\":{}} ,\"name\":\"weather\"}] "),
            whole(R"(Well. |now{}+weather{"b":{}})"));
  EXPECT_EQ(told(R"([TOOL_CALLS]now{} [TOOL_CALLS] weather [ARGS] {"z": "}"})"),
            whole(R"(|now{}+weather{"z": "}"})"));
  EXPECT_EQ(
      told(
          R"([TOOL_CALLS][{"name":"n\u006fw","arguments":{"q": "\"}{\\\u007b"}}][TOOL_CALLS]now{})"),
      whole(R"(|now{"q": "\"}{\\\u007b"}+now{})"));
  EXPECT_EQ(told("[TOOL_CALLS]now{\"caf\u00e9\": [[\"\U0001f600]\"], {\"name\": 3}]}"),
            whole("|now{\"caf\u00e9\": [[\"\U0001f600]\"], {\"name\": 3}]}"));
}

TEST(ToolCalls, WhatMayBecomeTheMarkerIsHeldBack) {
  EXPECT_EQ(told("no [TOOL_CALL of"), open("no [TOOL_CALL of|"));
  EXPECT_EQ(told("[TOOL[TOOL_CALLS]now{}"), whole("[TOOL|now{}"));
  EXPECT_EQ(told("an end [TOOL_CALLS"), open("an end [TOOL_CALLS|"));
  ToolCallReader reader(use());
  EXPECT_EQ(reader.push("a [TOOL").content, "a ");
  EXPECT_EQ(reader.push("S]").content, "[TOOLS]");
}

TEST(ToolCalls, ANameAndABraceMakeACall) {
  ToolCallReader reader(use());
  EXPECT_TRUE(reader.push(R"([TOOL_CALLS][{"name": "now", "arguments":)").calls.empty());
  const ToolCallDelta first = reader.push(" {").calls.at(0);
  EXPECT_EQ(first.name, "now");
  EXPECT_EQ(first.arguments, "{");
  EXPECT_EQ(reader.push("\"a\"").calls.at(0).arguments, "\"a\"");
  EXPECT_TRUE(reader.push("").calls.empty());
  EXPECT_EQ(reader.push(": 1}}, {\"arguments\": {\"b\": 2").calls.size(), 1u);
  EXPECT_TRUE(reader.push("}, \"name\"").calls.empty()) << "whose arguments they are is not known";
  EXPECT_EQ(reader.push(": \"now\"}").calls.at(0).arguments, "{\"b\": 2}");
}

TEST(ToolCalls, WhatIsNoCallIsContent) {
  for (const std::string tail : {
           "",
           " []",
           "[3]",
           "[ {\"name\"} ]",
           R"([{"name": "weather"}])",
           R"([{"arguments": {}}])",
           R"([{"name": "other", "arguments": {}}])",
           R"([{"arguments": {"z": [}, "name": "now"}])",
           R"([{"name": "now", "arguments": "{}"}])",
           R"([{"name": "now", "name": "now", "arguments": {}}])",
           R"([{"name": 3, "arguments": {}}])",
           R"([{"name": "now)",
           R"([{"arguments": {"z": 1)",
           "{}",
           "nowhere{}",
           "now",
           "There are a hundred ways to say it, and none of them is the name of a function {}",
       }) {
    const std::string answer = "Say [TOOL_CALLS]" + tail;
    EXPECT_EQ(told(answer), open(answer + '|'));
  }
  ToolCallReader reader(use());
  EXPECT_EQ(reader.push("[TOOL_CALLS][{\"name\": \"other\"").content, "");
  EXPECT_EQ(reader.push(", ").content, "[TOOL_CALLS][{\"name\": \"other\", ");
  EXPECT_EQ(reader.push("[TOOL_CALLS]now{}").content, "[TOOL_CALLS]now{}");
}

TEST(ToolCalls, WhatIsWrongAfterACallEndsTheAnswer) {
  const std::string now = R"([TOOL_CALLS][{"name": "now", "arguments": {}})";
  EXPECT_EQ(told(now + ", {\"name\": \"now\"}] and more"), ended("|now{}"));
  EXPECT_EQ(told(now + ", {\"name\": \"other\", \"arguments\": {}}]"), ended("|now{}"));
  EXPECT_EQ(told(now + ", ]"), ended("|now{}"));
  EXPECT_EQ(told(now + "} It is late."), ended("|now{}"));
  EXPECT_EQ(told(now + "] It is late."), ended("|now{}"));
  EXPECT_EQ(told("[TOOL_CALLS]now{}[TOOL_CALLS]other{}"), ended("|now{}"));
  EXPECT_EQ(told("[TOOL_CALLS]now{}[TOOL[TOOL_CALLS]now{}"), ended("|now{}"));
  EXPECT_EQ(told("[TOOL_CALLS]now{\"a\" 1}[TOOL_CALLS]now{}"), ended("|now{\"a\" 1}"));
  EXPECT_EQ(told(R"([TOOL_CALLS][{"name": "now", "arguments": {}, "arguments": {}}])"),
            ended("|now{}"));
  EXPECT_EQ(told(R"([TOOL_CALLS][{"name": "now", "arguments": {} {}}])"), ended("|now{}"));
  const std::string deep = "now{\"a\":" + std::string(70, '[') + std::string(70, ']') + "}";
  EXPECT_EQ(told("[TOOL_CALLS]" + deep), ended("|" + deep));
}

TEST(ToolCalls, ACallMayBeCutOff) {
  const std::string now = R"([TOOL_CALLS][{"name": "now", "arguments": {"a": "\")";
  EXPECT_EQ(told(now), open(R"(|now{"a": "\")"));
  EXPECT_EQ(told(now + "\"}"), open(R"(|now{"a": "\""})")) << "the call is not closed";
  EXPECT_EQ(told(now + "\"}}"), whole(R"(|now{"a": "\""})")) << "nothing of it is missing";
  EXPECT_EQ(told(now + "\"}}, "), open(R"(|now{"a": "\""})"));
  EXPECT_EQ(told("[TOOL_CALLS]now{}[TOOL"), open("|now{}"));
  EXPECT_EQ(told("[TOOL_CALLS]now{}[TOOL_CALLS]"), open("|now{}"));
}

TEST(ToolCalls, WithoutParallelCallsTheFirstEndsTheAnswer) {
  const Told first{.text = "|now{}", .ended = true, .whole = true};
  const ToolUse lone = use(R"(, "parallel_tool_calls": false)");
  EXPECT_EQ(told(lone, "[TOOL_CALLS]now{}[TOOL_CALLS]now{}"), first);
  EXPECT_EQ(told(lone, R"([TOOL_CALLS][{"name": "now", "arguments": {}}, 3])"), first);
}

TEST(ToolCalls, ForcedCallsAreToldAsTheyAreWritten) {
  const ToolUse forced = use(R"(, "tool_choice": "required", "parallel_tool_calls": false)");
  const std::string answer =
      R"([ {"name": "weather", "arguments": {"z": {"q": "\"}{"}, "a": "\\"}}, )"
      R"({"name":"now","arguments":{}}])";
  EXPECT_EQ(told(forced, answer), whole(R"(|weather{"z": {"q": "\"}{"}, "a": "\\"}+now{})"));
  EXPECT_EQ(told(forced, answer.substr(0, 51)), open(R"(|weather{"z": {"q": "\"})"));
  EXPECT_EQ(told(forced, answer.substr(0, 20)), open("|"));
  const std::string deep = "{\"z\":" + std::string(70, '[') + std::string(70, ']') + "}";
  EXPECT_EQ(told(forced, R"([{"name": "weather", "arguments": )" + deep + "}]"),
            whole("|weather" + deep));
}

// Texts of pieces that matter to the reader, in any order.
TEST(ToolCalls, AnyTextIsToldAlikeHoweverItIsCut) {
  const std::vector<std::string_view> pieces = {"[TOOL_CALLS]",
                                                "[TOOL",
                                                "[",
                                                "]",
                                                "{",
                                                "}",
                                                "\"",
                                                "\\",
                                                ":",
                                                ",",
                                                " ",
                                                "{}",
                                                "now",
                                                "\"now\"",
                                                "1",
                                                "\"name\"",
                                                "x",
                                                "\"arguments\"",
                                                "[{\"name\": \"now\", \"arguments\": {",
                                                "}}]",
                                                "now{}",
                                                "[{\"name\": \"now\", \"arguments\": {}}]"};
  std::mt19937 random(1);
  std::size_t called = 0, broken = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string answer = "[TOOL_CALLS]";
    std::vector<std::string_view> bytes;
    for (std::size_t n = random() % 12; n > 0; --n) answer += pieces[random() % pieces.size()];
    for (const char& c : answer) bytes.emplace_back(&c, 1);
    const Told all = told(use(), std::vector<std::string_view>{answer});
    ASSERT_EQ(told(use(), bytes), all) << answer;
    called += all.whole;
    broken += all.ended;
  }
  EXPECT_GT(called, 50u);
  EXPECT_GT(broken, 100u);
}

TEST(ToolCalls, GuidesKeepTheOrderAndMoveReferences) {
  const Guide all = guide_of(use(R"(, "tool_choice": "required")"));
  const ordered_json schema = ordered_json::parse(all.text);
  EXPECT_EQ(schema["maxItems"], kMostForcedCalls);
  EXPECT_EQ(schema["items"]["anyOf"].size(), 2u);
  const ordered_json& weather = schema["$defs"]["tool0"];
  EXPECT_EQ(weather["properties"].dump(),
            R"({"z":{"$ref":"#/$defs/tool0/$defs/Z"},"enum":{"$ref":"#/$defs/tool0/$defs/Z"}})");
  EXPECT_EQ(weather["$defs"]["Z"].dump(), R"({"enum":[{"$ref":"#/$defs/Z"}]})") << "a value";
  EXPECT_EQ(schema["$defs"]["tool1"].dump(), R"({"type":"object","properties":{}})");

  const ToolUse one = use(R"(, "tool_choice": {"type": "function", "function": {"name": "now"}})");
  const ordered_json only = ordered_json::parse(guide_of(one).text);
  EXPECT_EQ(only["items"]["anyOf"].size(), 1u);
  EXPECT_EQ(only["items"]["anyOf"][0]["properties"]["name"]["const"], "now");
  EXPECT_EQ(only["maxItems"], 1);
  EXPECT_TRUE(guide_of(one).at_start);
  EXPECT_FALSE(guide_of(one).any_spaces);
}

TEST(ToolCalls, ChoicesAreReadOrRefused) {
  EXPECT_FALSE(read("{}"));
  EXPECT_FALSE(read(R"({"tools": null, "tool_choice": "none"})"));
  EXPECT_FALSE(read(body(kTools, R"(, "tool_choice": "none")")));
  EXPECT_FALSE(use().forced);
  EXPECT_FALSE(use(R"(, "tool_choice": "auto")").forced);
  EXPECT_TRUE(use(R"(, "tool_choice": "required")").forced);

  const auto tool = [](const std::string& function) {
    return body(R"([{"type": "function", "function": )" + function + "}]");
  };
  std::string many = R"([{"type": "function", "function": {"name": "f"}})";
  for (int i = 0; i < 128; ++i)
    many += R"(,{"type": "function", "function": {"name": "f)" + std::to_string(i) + "\"}}";
  const std::tuple<std::string, const char*, const char*> all[] = {
      {R"({"tool_choice": "auto"})", "tool_choice", "no tools"},
      {R"({"parallel_tool_calls": true})", "parallel_tool_calls", "goes with"},
      {body("[]"), "tools", "1 to 128"},
      {body(many + "]"), "tools", "1 to 128"},
      {body("{}"), "tools", "1 to 128"},
      {body("[3]"), "tools[0]", "an object, it is 3"},
      {body("[{}]"), "tools[0].type", "missing"},
      {body(R"([{"type": "web_search"}])"), "tools[0].type", "web_search"},
      {body(R"([{"type": "function"}])"), "tools[0].function", "missing"},
      {tool("{}"), "tools[0].function.name", "missing"},
      {tool(R"({"name": "a b"})"), "tools[0].function.name", "\"a b\""},
      {tool(R"({"name": ""})"), "tools[0].function.name", "1 to 64"},
      {tool("{\"name\": \"" + std::string(65, 'x') + "\"}"), "tools[0].function.name", "1 to 64"},
      {tool(R"({"name": "f", "parameters": []})"), "tools[0].function.parameters", "it is []"},
      {tool(R"({"name": "f", "parameters": {"type": "array"}})"),
       "tools[0].function.parameters.type", "array"},
      {tool(R"({"name": "f", "strict": 1})"), "tools[0].function.strict", "true or false"},
      {tool(R"({"name": "f", "cost": 1})"), "tools[0].function.cost", "does not support"},
      {tool("{\"name\": \"f\", \"description\": \"" + std::string(70000, 'x') + "\"}"), "tools",
       "65536"},
      {body(R"([{"type": "function", "function": {"name": "f"}},
                {"type": "function", "function": {"name": "f"}}])"),
       "tools[1].function.name", "both named \"f\""},
      {body(kTools, R"(, "tool_choice": "any")"), "tool_choice", "\"any\""},
      {body(kTools, R"(, "tool_choice": {"type": "function"})"), "tool_choice.function", "missing"},
      {body(kTools, R"(, "tool_choice": {"type": "function", "function": {"name": "tomorrow"}})"),
       "tool_choice.function.name", "\"tomorrow\"; \"tools\" has \"weather\", \"now\""},
  };
  for (const auto& [text, param, words] : all) {
    try {
      read(text);
      ADD_FAILURE() << "taken: " << text.substr(0, 200);
    } catch (const ApiError& e) {
      EXPECT_EQ(e.status, 400);
      EXPECT_EQ(e.param, param);
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace ostro::server
