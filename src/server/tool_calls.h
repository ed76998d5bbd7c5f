// Calls of tools in what a model says, in Mistral's format.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/call_text.h"
#include "server/tools.h"

namespace ostro::server {

// What became known of one call. The first delta of a call has its id and name.
struct ToolCallDelta {
  std::size_t index = 0;
  std::string id = {};
  std::string name = {};
  std::string arguments = {};  // goes on from that of the deltas before
};

// One answer, read as it comes; what is told does not depend on how its text is cut.
//
// After any content comes kToolCalls (forced calls: at once, without it), then a list
// [{"name": "f", "arguments": {...}}, ...] or f{...}, and so again for further calls. A call is
// told from the moment when its name, which must be a tool's, and the opening brace of its
// arguments are known; the arguments then follow as they are written. Where something is wrong,
// with a call told already, the answer ends there; if none was, all from kToolCalls on is content.
class ToolCallReader {
 public:
  struct Said {
    std::string content = {};
    std::vector<ToolCallDelta> calls = {};
  };

  explicit ToolCallReader(const ToolUse&);

  Said push(std::string_view text);
  std::string finish();  // after the last text: the content that was held back

  // Nothing that follows will be told: something was wrong, or there is the one call allowed.
  bool ended() const { return at_ == At::enough || at_ == At::broken; }
  // It has calls, none is cut off, and nothing after the first was wrong.
  bool only_whole_calls() const;

 private:
  enum class At {
    content,
    marked,  // after kToolCalls
    name,    // of f{...}
    list,    // before a call in a list
    call,
    in_list,    // after a call in a list
    between,    // after a list or f{...}
    not_calls,  // all is content
    enough,
    broken
  };
  void step(char, Said&);
  bool match(char);
  void push_content(char, Said&);
  void push_name(char, Said&);
  void begin_call(CallText, Said&);
  void push_call(char, Said&);
  void tell(Said&);
  void refuse(Said&);

  std::vector<std::string> tools_;  // their names
  bool forced_, several_;
  At at_;
  std::string held_;         // content unless a call comes of it; empty once one was told
  std::size_t matched_ = 0;  // bytes of kToolCalls
  std::string name_;         // of f{...}, with what stands around it
  CallText call_;
  bool listed_ = false;         // it is in a list
  bool named_ = false;          // its name is a tool's
  std::size_t told_bytes_ = 0;  // of its arguments
  std::size_t calls_ = 0;       // that were told
};

}  // namespace ostro::server
