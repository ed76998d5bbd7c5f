// The event stream of an OpenAI-compatible completion, piece by piece as it arrives.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ostro::loadgen {

// What one event tells.
struct StreamEvent {
  bool has_text = false;  // generated text came, of a completion or a chat
  bool is_done = false;   // "[DONE]"
  std::optional<std::int64_t> prompt_tokens, completion_tokens;  // of "usage"
  std::string error;  // the server ends the request with this
};

// Throws InvalidArgument if `data` is neither JSON nor "[DONE]".
StreamEvent parse_event(std::string_view data);

// Server-sent events (the WHATWG HTML standard, 9.2.6): gathers bytes, gives the data of each event
// that is complete. Fields other than data, and comments, are passed over.
class EventReader {
 public:
  void add(std::string_view bytes) { pending_ += bytes; }
  // The data of the next event, lines joined by "\n"; empty if there is none yet. Valid until the
  // next call.
  std::optional<std::string_view> next();

 private:
  std::string pending_;
  std::size_t begin_ = 0;  // of the first line that was not read yet
  std::string data_;
  bool has_data_ = false;
  bool given_ = false;
};

}  // namespace ostro::loadgen
