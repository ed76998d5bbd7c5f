#include "server/tool_calls.h"

#include <algorithm>
#include <random>
#include <utility>

#include "text/chat_template.h"

namespace ostro::server {
namespace {

// Some tokenizers write it between a name and its arguments, others have a token without text.
constexpr std::string_view kArguments = "[ARGS]";
// Of a name with what may stand around it. What is longer is text: it need not wait for a brace.
constexpr std::size_t kLongestName = kLongestToolName + kArguments.size() + 10;

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

std::string tool_name(std::string_view text) {
  const auto trim = [&] {
    while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  };
  trim();
  if (text.ends_with(kArguments)) text.remove_suffix(kArguments.size());
  trim();
  return std::string(text);
}

}  // namespace

ToolCallReader::ToolCallReader(const ToolUse& use)
    : forced_(use.forced),
      several_(use.parallel || use.forced),  // of forced calls the guide sees to it
      at_(use.forced ? At::marked : At::content) {
  for (const Tool& tool : use.tools) tools_.push_back(tool.name);
}

ToolCallReader::Said ToolCallReader::push(std::string_view text) {
  Said said;
  for (const char c : text) step(c, said);
  if (at_ == At::call) tell(said);
  return said;
}

std::string ToolCallReader::finish() {
  if (forced_) return {};
  return std::exchange(held_, {});
}

bool ToolCallReader::only_whole_calls() const {
  return calls_ > 0 &&
         (at_ == At::in_list || at_ == At::enough || (at_ == At::between && matched_ == 0));
}

void ToolCallReader::step(char c, Said& said) {
  if (calls_ == 0) held_ += c;
  switch (at_) {
    case At::content:
      return push_content(c, said);
    case At::marked:
      if (is_json_space(c)) return;
      listed_ = c == '[';
      at_ = listed_ ? At::list : At::name;
      name_.clear();
      if (!listed_) push_name(c, said);
      return;
    case At::name:
      return push_name(c, said);
    case At::list:
      if (is_json_space(c)) return;
      if (c != '{') return refuse(said);
      return begin_call({}, said);
    case At::call:
      return push_call(c, said);
    case At::in_list:
      if (is_json_space(c)) return;
      if (c != ',' && c != ']') return refuse(said);
      at_ = c == ',' ? At::list : At::between;
      return;
    case At::between:
      if (matched_ == 0 && is_json_space(c)) return;
      if (!match(c)) refuse(said);
      return;
    case At::not_calls:
      said.content += std::exchange(held_, {});
      return;
    case At::enough:
    case At::broken:
      return;
  }
}

// Whether kToolCalls goes on with `c`. Its first byte is nowhere else in it.
bool ToolCallReader::match(char c) {
  if (c != txt::kToolCalls[matched_]) {
    matched_ = c == txt::kToolCalls[0] ? 1 : 0;
    return false;
  }
  if (++matched_ < txt::kToolCalls.size()) return true;
  matched_ = 0;
  at_ = At::marked;
  return true;
}

void ToolCallReader::push_content(char c, Said& said) {
  if (match(c)) return;
  const std::size_t certain = held_.size() - matched_;
  said.content.append(held_, 0, certain);
  held_.erase(0, certain);
}

void ToolCallReader::push_name(char c, Said& said) {
  if (c == '{') return begin_call(CallText(tool_name(name_)), said);
  name_ += c;
  if (name_.size() > kLongestName) refuse(said);
}

void ToolCallReader::begin_call(CallText call, Said& said) {
  call_ = std::move(call);
  named_ = false;
  told_bytes_ = 0;
  at_ = At::call;
  push_call('{', said);
}

void ToolCallReader::push_call(char c, Said& said) {
  const CallText::State state = call_.push(c);
  if (!named_ && call_.name()) {
    named_ = std::ranges::find(tools_, *call_.name()) != tools_.end();
    if (!named_) return refuse(said);
  }
  if (state == CallText::State::open) return;
  tell(said);
  // What a guide lets through may be deeper than is_json() goes.
  if (state == CallText::State::wrong || (!forced_ && !call_.is_json())) return refuse(said);
  at_ = !several_ ? At::enough : listed_ ? At::in_list : At::between;
}

void ToolCallReader::tell(Said& said) {
  const std::string_view arguments = call_.arguments();
  if (!named_ || arguments.size() == told_bytes_) return;
  if (told_bytes_ == 0) {
    said.calls.push_back({.index = calls_++, .id = new_id(), .name = *call_.name()});
    held_.clear();
  } else if (said.calls.empty()) {
    said.calls.push_back({.index = calls_ - 1});
  }
  said.calls.back().arguments += arguments.substr(told_bytes_);
  told_bytes_ = arguments.size();
}

void ToolCallReader::refuse(Said& said) {
  at_ = calls_ > 0 ? At::broken : At::not_calls;
  said.content += std::exchange(held_, {});
}

}  // namespace ostro::server
