// The functions that a chat's model may call, and whether it must.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ostro/executor.h"
#include "server/fields.h"

namespace ostro::server {

inline constexpr std::size_t kMostTools = 128;
inline constexpr std::size_t kMostToolBytes = 64 << 10;  // of the field as compact JSON
inline constexpr std::size_t kLongestToolName = 64;
inline constexpr std::int64_t kMostForcedCalls = 16;  // of one answer

struct Tool {
  std::string name;
  std::string parameters;  // a JSON schema of type object, the properties in the client's order
};

struct ToolUse {
  std::vector<Tool> tools;  // at least one
  std::string json;         // the field "tools", for the chat template
  bool forced = false;      // the answer is a list of calls and nothing else
  std::string only;         // forced: the one function that is called; empty: any
  bool parallel = true;     // an answer may have several calls
};

// "tools", "tool_choice" and "parallel_tool_calls". None if there are no tools, or if the choice is
// "none": then the model is not told of them. `body` is the text that the fields are of.
std::optional<ToolUse> read_tools(Fields&, std::string_view body);

// What a forced answer must look like: [{"name": ..., "arguments": {...}}, ...].
Guide guide_of(const ToolUse&);

// Throws ApiError 400 unless it is a function's name: 1 to 64 of a-z, A-Z, 0-9, _ and -.
void check_tool_name(const std::string& name, const std::string& param);

}  // namespace ostro::server
