#include "server/tool_calls.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

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

// "weather{...}+now{...}", after the content.
std::string told(const ToolUse& use, const std::string& answer, std::size_t piece_bytes,
                 bool* whole = nullptr) {
  const auto reader = read_tool_calls(use);
  ToolCallReader::Said all;
  const auto take = [&](ToolCallReader::Said said) {
    all.content += said.content;
    for (ToolCallDelta& d : said.calls) all.calls.push_back(std::move(d));
  };
  for (std::size_t i = 0; i < answer.size(); i += piece_bytes)
    take(reader->push(answer.substr(i, piece_bytes)));
  take(reader->finish());
  if (whole) *whole = reader->only_whole_calls();
  std::string text = all.content + '|';
  std::size_t calls = 0;
  for (const ToolCallDelta& d : all.calls) {
    if (d.index == calls) {
      text += (calls++ ? "+" : "") + d.name;
      EXPECT_EQ(d.id.size(), 9u);
      for (const char c : d.id) EXPECT_TRUE(std::isalnum(static_cast<unsigned char>(c))) << d.id;
    } else {
      EXPECT_EQ(d.index + 1, calls);
      EXPECT_EQ(d.name + d.id, "");
    }
    text += d.arguments;
  }
  return text;
}

TEST(ToolCalls, FreeCallsAreFoundHoweverTheTextIsCut) {
  const std::pair<const char*, const char*> all[] = {
      {R"([TOOL_CALLS] [{"name": "weather", "arguments": {"z": 1, "a": "[TOOL_CALLS]"}}])",
       R"(|weather{"z":1,"a":"[TOOL_CALLS]"})"},
      {"Well. [TOOL_CALLS][{\"name\":\"now\",\"arguments\":{},\"id\":\"x\"},\n"
       "{\"arguments\":{\"b\":{}},\"name\":\"weather\"}] ",
       R"(Well. |now{}+weather{"b":{}})"},
      {R"([TOOL_CALLS]now{}[TOOL_CALLS]weather[ARGS]{"z": "}"})", R"(|now{}+weather{"z":"}"})"},
      {"no [TOOL_CALL of", "no [TOOL_CALL of|"},
      {"an end [TOOL_CALLS", "an end [TOOL_CALLS|"},
  };
  for (const auto& [answer, want] : all)
    for (const std::size_t bytes : {1u, 2u, 7u, 1000u})
      EXPECT_EQ(told(use(), answer, bytes), want) << bytes;
}

TEST(ToolCalls, WhatIsWrongIsContent) {
  for (const std::string& tail : {
           std::string(""),
           std::string(" []"),
           std::string(" [{\"name\": \"weather\"}]"),
           std::string(R"([{"name": "other", "arguments": {}}])"),
           std::string(R"([{"name": "now", "arguments": "{}"}])"),
           std::string(R"([{"name": 3, "arguments": {}}])"),
           std::string("[3]"),
           std::string(R"([{"name": "now", "arguments": {}}, {"name": "now"}])"),
           std::string(R"([{"name": "now", "arguments": {}})"),
           std::string("now{"),
           std::string("now{}[TOOL_CALLS]other{}"),
           "now{\"a\":" + std::string(100000, '['),
       }) {
    bool whole = true;
    const std::string answer = "Say [TOOL_CALLS]" + tail;
    EXPECT_EQ(told(use(), answer, 50, &whole), answer + '|');
    EXPECT_FALSE(whole);
  }
}

TEST(ToolCalls, WithoutParallelCallsTheFirstStands) {
  EXPECT_EQ(told(use(R"(, "parallel_tool_calls": false)"), "[TOOL_CALLS]now{}[TOOL_CALLS]now{}", 9),
            "|now{}");
}

TEST(ToolCalls, ForcedCallsAreToldAsTheyCome) {
  const ToolUse forced = use(R"(, "tool_choice": "required")");
  const std::string answer =
      R"([ {"name": "weather", "arguments": {"z": {"q": "\"}{"}, "a": "\\"}}, )"
      R"({"name":"now","arguments":{}}])";
  for (const std::size_t bytes : {1u, 3u, 1000u}) {
    bool whole = false;
    EXPECT_EQ(told(forced, answer, bytes, &whole),
              R"(|weather{"z": {"q": "\"}{"}, "a": "\\"}+now{})");
    EXPECT_TRUE(whole);
    EXPECT_EQ(told(forced, answer.substr(0, 51), bytes, &whole), R"(|weather{"z": {"q": "\"})");
    EXPECT_FALSE(whole);
    EXPECT_EQ(told(forced, answer.substr(0, 20), bytes, &whole), "|");
    EXPECT_FALSE(whole);
  }
  const auto reader = read_tool_calls(forced);
  EXPECT_TRUE(reader->push(R"([{"name": "now", "arguments":)").calls.empty());
  EXPECT_EQ(reader->push(" {").calls.at(0).name, "now");
  EXPECT_EQ(reader->push("\"a\"").calls.at(0).arguments, "\"a\"");
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
