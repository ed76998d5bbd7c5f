#include "server/choice.h"

#include <utility>

#include "text/chat_template.h"

namespace ostro::server {

Choice::Choice(const txt::Tokenizer& tokenizer, std::span<const TokenId> context,
               std::vector<std::string> stops, const std::optional<ToolUse>& tools)
    : detokenizer_(tokenizer, context), stops_(std::move(stops)) {
  if (!tools) return;
  calls_.emplace(*tools);
  call_token_ = tokenizer.special_id(txt::kToolCalls);
  if (call_token_ && !tokenizer.is_special(*call_token_)) call_token_ = std::nullopt;
}

Choice::Piece Choice::push(const Response& r) {
  Piece piece;
  if (ended()) return piece;
  read_tokens(r, piece);
  const bool by_itself = r.finish == FinishReason::end_id || r.finish == FinishReason::stop ||
                         r.finish == FinishReason::guide || r.finish == FinishReason::dead_end ||
                         r.finish == FinishReason::length;
  if (r.is_final && by_itself && !ended()) end_text(r.finish, piece);
  if (calls_) read_calls(piece);
  release_tokens(piece);
  return piece;
}

void Choice::read_tokens(const Response& r, Piece& piece) {
  for (std::size_t i = 0; i < r.tokens.size() && !ended(); ++i) {
    ++tokens_;
    // The end id has no text of its own.
    if (r.finish == FinishReason::end_id && i + 1 == r.tokens.size()) break;
    if (i < r.log_probs.size())
      held_.push_back(
          {.token = {.id = r.tokens[i],
                     .log_prob = r.log_probs[i],
                     .alternatives = i < r.alternatives.size() ? r.alternatives[i]
                                                               : std::vector<TokenLogProb>{}},
           .end = std::nullopt});
    if (r.tokens[i] == call_token_)
      add_text(txt::kToolCalls, piece);
    else
      add_text(detokenizer_.push(r.tokens[i]), piece);
  }
}

void Choice::end_text(FinishReason finish, Piece& piece) {
  add_text(detokenizer_.finish(), piece);
  if (ended()) return;
  const std::string rest = stops_.finish();
  released_bytes_ += rest.size();
  piece.text += rest;
  for (Held& held : held_) held.end = released_bytes_;
  finish_reason_ = finish == FinishReason::length     ? "length"
                   : finish == FinishReason::dead_end ? "dead_end"
                                                      : "stop";
}

// What is said of tools becomes calls.
void Choice::read_calls(Piece& piece) {
  ToolCallReader::Said said = calls_->push(piece.text);
  if (calls_->ended()) finish_reason_ = "stop";
  if (ended()) {
    said.content += calls_->finish();
    if (finish_reason_ == "stop" && calls_->only_whole_calls()) finish_reason_ = "tool_calls";
  }
  piece.text = std::move(said.content);
  piece.calls = std::move(said.calls);
}

void Choice::add_text(std::string_view text, Piece& piece) {
  if (text.empty()) return;
  made_bytes_ += text.size();
  for (auto held = held_.rbegin(); held != held_.rend() && !held->end; ++held)
    held->end = made_bytes_;
  const txt::StopStrings::Step step = stops_.push(text);
  released_bytes_ += step.text.size();
  piece.text += step.text;
  if (step.stop) finish_reason_ = "stop";
}

void Choice::release_tokens(Piece& piece) {
  while (!held_.empty() && held_.front().end && *held_.front().end <= released_bytes_) {
    piece.tokens.push_back(std::move(held_.front().token));
    held_.pop_front();
  }
}

}  // namespace ostro::server
