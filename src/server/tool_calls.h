// Calls of tools in what a model says, in Mistral's format.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/tools.h"

namespace ostro::server {

// What became known of one call. The first delta of a call has its id and name.
struct ToolCallDelta {
  std::size_t index = 0;
  std::string id = {};
  std::string name = {};
  std::string arguments = {};  // goes on from that of the deltas before
};

// One answer, read as it comes.
class ToolCallReader {
 public:
  struct Said {
    std::string content = {};
    std::vector<ToolCallDelta> calls = {};
  };

  virtual ~ToolCallReader() = default;
  virtual Said push(std::string_view text) = 0;
  virtual Said finish() = 0;                  // after the last text
  virtual bool only_whole_calls() const = 0;  // after finish(): it has calls, and none is cut off
};

// Forced calls, [{"name": "f", "arguments": {...}}, ...] as guide_of() wants them, are told as they
// come. Others begin with kToolCalls, after any content; then comes the same list, or f{...} with
// another kToolCalls before each further call. Those are told when the answer has ended: if
// anything is wrong with one (not JSON, no such tool, arguments that are no object), all from
// kToolCalls on is content.
std::unique_ptr<ToolCallReader> read_tool_calls(const ToolUse&);

}  // namespace ostro::server
