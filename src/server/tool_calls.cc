#include "server/tool_calls.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "text/chat_template.h"

namespace ostro::server {
namespace {

using nlohmann::ordered_json;

// Nine letters and digits: Mistral's templates take no other ids.
std::string new_id() {
  static constexpr std::string_view kLetters =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  static std::mt19937_64 random{std::random_device{}()};  // of the server's thread
  std::uniform_int_distribution<std::size_t> any(0, kLetters.size() - 1);
  std::string id(9, ' ');
  for (char& c : id) c = kLetters[any(random)];
  return id;
}

std::string_view trimmed(std::string_view text) {
  constexpr const char* kSpaces = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

// The guide has seen to it that the text is a beginning of such a list.
class ForcedCalls final : public ToolCallReader {
 public:
  Said push(std::string_view text) override {
    Said said;
    for (const char c : text) in_arguments_ ? argument(c, said) : between(c, said);
    return said;
  }
  Said finish() override { return {}; }
  bool only_whole_calls() const override { return calls_ > 0 && !in_arguments_; }

 private:
  void argument(char c, Said& said) {
    if (said.calls.empty()) said.calls.push_back({.index = calls_ - 1});
    said.calls.back().arguments += c;
    if (in_string_) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == '"')
        in_string_ = false;
      return;
    }
    if (c == '"') in_string_ = true;
    if (c == '{') ++depth_;
    if (c == '}') in_arguments_ = --depth_ > 0;
  }
  // Names have no escapes: the words before the arguments are "name", it and "arguments".
  void between(char c, Said& said) {
    if (in_string_) {
      if (c == '"')
        in_string_ = false;
      else
        words_.back() += c;
    } else if (c == '"') {
      in_string_ = true;
      words_.emplace_back();
    } else if (c == '{' && words_.size() == 3) {
      said.calls.push_back({.index = calls_++, .id = new_id(), .name = words_[1]});
      words_.clear();
      in_arguments_ = true;
      argument(c, said);
    }
  }

  std::size_t calls_ = 0;
  std::vector<std::string> words_;
  bool in_arguments_ = false, in_string_ = false, escaped_ = false;
  int depth_ = 0;
};

class FreeCalls final : public ToolCallReader {
 public:
  explicit FreeCalls(const ToolUse& use) : parallel_(use.parallel) {
    for (const Tool& tool : use.tools) names_.push_back(tool.name);
  }

  Said push(std::string_view text) override {
    held_ += text;
    if (marked_) return {};
    const std::size_t marker = held_.find(txt::kToolCalls);
    marked_ = marker != std::string::npos;
    const std::size_t certain = marked_ ? marker : held_.size() - beginning_of_marker();
    Said said{.content = held_.substr(0, certain)};
    held_.erase(0, certain);
    return said;
  }

  Said finish() override {
    Said said;
    if (marked_) said.calls = calls(std::string_view(held_).substr(txt::kToolCalls.size()));
    called_ = !said.calls.empty();
    if (!called_) said.content = std::exchange(held_, {});
    return said;
  }

  bool only_whole_calls() const override { return called_; }

 private:
  // How many bytes at the end may become the marker.
  std::size_t beginning_of_marker() const {
    std::size_t n = std::min(held_.size(), txt::kToolCalls.size() - 1);
    while (n > 0 && !held_.ends_with(txt::kToolCalls.substr(0, n))) --n;
    return n;
  }

  // None if anything is wrong.
  std::vector<ToolCallDelta> calls(std::string_view text) const {
    std::vector<ToolCallDelta> all;
    if (!add_list(text, all)) {
      all.clear();
      for (std::size_t at = 0; at != std::string_view::npos;) {
        const std::size_t end = text.find(txt::kToolCalls, at);
        const std::string_view part = text.substr(at, end - at);
        if (!add_named(part, all) && !add_list(part, all)) return {};
        at = end == std::string_view::npos ? end : end + txt::kToolCalls.size();
      }
    }
    if (!parallel_ && all.size() > 1) all.resize(1);
    return all;
  }

  bool add_list(std::string_view text, std::vector<ToolCallDelta>& all) const {
    const std::optional<ordered_json> list = json_of(trimmed(text));
    if (!list || !list->is_array() || list->empty()) return false;
    for (const ordered_json& call : *list) {
      if (!call.is_object() || !call.contains("name") || !call["name"].is_string() ||
          !call.contains("arguments"))
        return false;
      if (!add(call["name"].get<std::string>(), call["arguments"], all)) return false;
    }
    return true;
  }

  // f{...}, or f[ARGS]{...} where [ARGS] is no special token.
  bool add_named(std::string_view text, std::vector<ToolCallDelta>& all) const {
    const std::size_t brace = text.find('{');
    if (brace == std::string_view::npos) return false;
    std::string_view name = trimmed(text.substr(0, brace));
    if (name.ends_with("[ARGS]")) name.remove_suffix(6);
    const std::optional<ordered_json> arguments = json_of(trimmed(text.substr(brace)));
    return arguments && add(std::string(name), *arguments, all);
  }

  bool add(const std::string& name, const ordered_json& arguments,
           std::vector<ToolCallDelta>& all) const {
    if (!arguments.is_object() || std::ranges::find(names_, name) == names_.end()) return false;
    all.push_back(
        {.index = all.size(),
         .id = new_id(),
         .name = name,
         .arguments = arguments.dump(-1, ' ', false, ordered_json::error_handler_t::replace)});
    return true;
  }

  static std::optional<ordered_json> json_of(std::string_view text) {
    try {
      parse_json(text, "a tool call");  // it limits how deep that is
      return ordered_json::parse(text);
    } catch (const InvalidArgument&) {
      return {};
    }
  }

  std::vector<std::string> names_;
  bool parallel_;
  std::string held_;  // not told yet; from the marker on once there is one
  bool marked_ = false, called_ = false;
};

}  // namespace

std::unique_ptr<ToolCallReader> read_tool_calls(const ToolUse& use) {
  if (use.forced) return std::make_unique<ForcedCalls>();
  return std::make_unique<FreeCalls>(use);
}

}  // namespace ostro::server
