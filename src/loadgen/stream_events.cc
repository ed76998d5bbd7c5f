#include "loadgen/stream_events.h"

#include <nlohmann/json.hpp>

#include "base/json.h"

namespace ostro::loadgen {
namespace {

using nlohmann::json;

bool has_words(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() && !it->get_ref<const std::string&>().empty();
}

// A reasoning model's thoughts and a tool call are generated tokens as well.
bool generated(const json& choice) {
  if (has_words(choice, "text")) return true;
  const auto delta = choice.find("delta");
  if (delta == choice.end() || !delta->is_object()) return false;
  return has_words(*delta, "content") || has_words(*delta, "reasoning_content") ||
         has_words(*delta, "reasoning") ||
         (delta->contains("tool_calls") && !delta->at("tool_calls").empty());
}

}  // namespace

StreamEvent parse_event(std::string_view data) {
  StreamEvent event;
  if (data == "[DONE]") {
    event.is_done = true;
    return event;
  }
  const json parsed = parse_json(data, "an event of the server's stream");
  const JsonObject o(parsed, "an event of the server's stream");
  if (o.has("error")) {
    const json& error = o.at("error");
    event.error = error.is_object() && error.contains("message") && error["message"].is_string()
                      ? error["message"].get<std::string>()
                      : shown(error);
    return event;
  }
  if (o.has("choices") && o.at("choices").is_array())
    for (const json& choice : o.at("choices"))
      if (choice.is_object() && generated(choice)) event.has_text = true;
  if (o.has("usage")) {
    const JsonObject usage(o.at("usage"), "the usage in the server's stream");
    event.prompt_tokens = usage.integer_or("prompt_tokens", 0, 0, INT64_MAX);
    event.completion_tokens = usage.integer_or("completion_tokens", 0, 0, INT64_MAX);
  }
  return event;
}

std::optional<std::string_view> EventReader::next() {
  if (given_) {
    data_.clear();
    has_data_ = given_ = false;
  }
  for (std::size_t end; (end = pending_.find('\n', begin_)) != pending_.npos;) {
    std::string_view line(pending_.data() + begin_, end - begin_);
    begin_ = end + 1;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) {
      if (!has_data_) continue;
      given_ = true;
      return data_;
    }
    if (!line.starts_with("data")) continue;
    line.remove_prefix(4);
    if (!line.empty() && line[0] != ':') continue;
    if (!line.empty()) line.remove_prefix(1);
    if (!line.empty() && line[0] == ' ') line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += line;
    has_data_ = true;
  }
  pending_.erase(0, begin_);
  begin_ = 0;
  return {};
}

}  // namespace ostro::loadgen
