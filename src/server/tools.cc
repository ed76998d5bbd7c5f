#include "server/tools.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace ostro::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// The schema of a function without parameters allows {} alone.
std::string read_parameters(Fields& function, const ordered_json& in_order) {
  const json* value = function.any("parameters");
  if (!value) return R"({"type":"object","properties":{}})";
  const std::string param = function.path("parameters");
  if (!value->is_object()) refuse_value(param, "a JSON schema, an object", *value);
  const auto type = value->find("type");
  if (type != value->end() && *type != "object") refuse_value(param + ".type", "\"object\"", *type);
  ordered_json schema = in_order.at("parameters");
  schema["type"] = "object";
  return schema.dump();
}

Tool read_tool(const json& value, const ordered_json& in_order, const std::string& path) {
  Fields fields(value, path);
  const auto type = fields.string("type");
  if (!type) missing(fields.path("type"));
  if (*type != "function") refuse_value(fields.path("type"), "\"function\"", *type);
  const json* inside = fields.any("function");
  if (!inside) missing(fields.path("function"));
  fields.refuse_others();
  Fields function(*inside, fields.path("function"));
  const auto name = function.string("name");
  if (!name) missing(function.path("name"));
  check_tool_name(*name, function.path("name"));
  function.string("description");
  function.boolean("strict");  // docs/serving.md says what it means
  Tool tool{.name = *name, .parameters = read_parameters(function, in_order.at("function"))};
  function.refuse_others();
  return tool;
}

std::vector<Tool> read_list(const json& value, const ordered_json& in_order) {
  if (!value.is_array() || value.empty() || value.size() > kMostTools)
    refuse_value("tools", text("a list of 1 to ", kMostTools, " tools"), value);
  std::vector<Tool> tools;
  for (std::size_t i = 0; i < value.size(); ++i) {
    Tool tool = read_tool(value[i], in_order[i], text("tools[", i, ']'));
    const auto same = std::ranges::find(tools, tool.name, &Tool::name);
    if (same != tools.end())
      refuse(text("tools[", i, "].function.name"),
             text("tools[", same - tools.begin(), "] and tools[", i, "] are both named \"",
                  tool.name, '"'));
    tools.push_back(std::move(tool));
  }
  return tools;
}

// False for "none".
bool read_choice(const json& value, ToolUse& use) {
  if (value == "auto") return true;
  if (value == "none") return false;
  use.forced = true;
  if (value == "required") return true;
  if (!value.is_object())
    refuse_value("tool_choice",
                 R"("none", "auto", "required" or {"type": "function", "function": {"name": ...}})",
                 value);
  Fields choice(value, "tool_choice");
  const auto type = choice.string("type");
  if (!type) missing("tool_choice.type");
  if (*type != "function") refuse_value("tool_choice.type", "\"function\"", *type);
  const json* inside = choice.any("function");
  if (!inside) missing("tool_choice.function");
  choice.refuse_others();
  Fields function(*inside, "tool_choice.function");
  const auto name = function.string("name");
  if (!name) missing("tool_choice.function.name");
  function.refuse_others();
  if (std::ranges::find(use.tools, *name, &Tool::name) == use.tools.end()) {
    std::string known;
    for (const Tool& tool : use.tools) known += (known.empty() ? "\"" : ", \"") + tool.name + '"';
    refuse("tool_choice.function.name",
           text("\"tool_choice\" names the function ", shown(*name), "; \"tools\" has ", known));
  }
  use.only = *name;
  return true;
}

// References within a schema are relative to its root, which is now at `root`.
void move_references(ordered_json& schema, const std::string& root) {
  if (schema.is_array())
    for (ordered_json& part : schema) move_references(part, root);
  if (!schema.is_object()) return;
  const auto is = [](const std::string& key, std::initializer_list<const char*> of) {
    return std::ranges::find(of, key) != of.end();
  };
  for (auto& [key, value] : schema.items()) {
    if (key == "$ref" && value.is_string()) {
      const std::string& old = value.get_ref<const std::string&>();
      if (old.starts_with('#')) value = root + old.substr(1);
    } else if (is(key, {"properties", "patternProperties", "$defs", "definitions"}) &&
               value.is_object()) {
      for (auto& [name, part] : value.items()) move_references(part, root);
    } else if (!is(key, {"enum", "const", "default", "examples"})) {  // values, not schemas
      move_references(value, root);
    }
  }
}

}  // namespace

void check_tool_name(const std::string& name, const std::string& param) {
  const bool fits = std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
  if (!fits || name.empty() || name.size() > kLongestToolName)
    refuse_value(param, text("1 to ", kLongestToolName, " of a-z, A-Z, 0-9, _ and -"), name);
}

std::optional<ToolUse> read_tools(Fields& fields, std::string_view body) {
  const json* value = fields.any("tools");
  const json* choice = fields.any("tool_choice");
  const auto parallel = fields.boolean("parallel_tool_calls");
  if (!value) {
    if (choice && *choice != "none")
      refuse("tool_choice", text("\"tool_choice\" is ", shown(*choice), " and there are no tools"));
    if (parallel) refuse("parallel_tool_calls", "\"parallel_tool_calls\" goes with \"tools\"");
    return {};
  }
  const ordered_json in_order = ordered_json::parse(body).at("tools");
  ToolUse use{.tools = read_list(*value, in_order),
              .json = in_order.dump(),
              .forced = false,
              .only = {},
              .parallel = parallel.value_or(true)};
  if (use.json.size() > kMostToolBytes)
    refuse("tools",
           text("\"tools\" has ", use.json.size(), " bytes; the limit is ", kMostToolBytes));
  if (choice && !read_choice(*choice, use)) return {};
  return use;
}

// Spaces are where the models have seen them in calls. The parameters stand in definitions of their
// own: xgrammar follows references through objects alone.
Guide guide_of(const ToolUse& use) {
  ordered_json definitions = ordered_json::object();
  ordered_json calls = ordered_json::array();
  for (const Tool& tool : use.tools) {
    if (!use.only.empty() && tool.name != use.only) continue;
    const std::string key = text("tool", definitions.size());
    const std::string root = "#/$defs/" + key;
    ordered_json parameters = ordered_json::parse(tool.parameters);
    move_references(parameters, root);
    definitions[key] = std::move(parameters);
    calls.push_back(
        {{"type", "object"},
         {"properties", {{"name", {{"const", tool.name}}}, {"arguments", {{"$ref", root}}}}},
         {"required", {"name", "arguments"}}});
  }
  const bool several = use.parallel && use.only.empty();
  const ordered_json schema = {{"type", "array"},
                               {"items", {{"anyOf", std::move(calls)}}},
                               {"minItems", 1},
                               {"maxItems", several ? kMostForcedCalls : 1},
                               {"$defs", std::move(definitions)}};
  return {
      .kind = GuideKind::json_schema, .text = schema.dump(), .at_start = true, .any_spaces = false};
}

}  // namespace ostro::server
