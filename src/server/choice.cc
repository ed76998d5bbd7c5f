#include "server/choice.h"

namespace ostro::server {

Choice::Piece Choice::push(const Response& r) {
  Piece piece;
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
    add_text(detokenizer_.push(r.tokens[i]), piece);
  }
  const bool by_itself = r.finish == FinishReason::end_id || r.finish == FinishReason::stop ||
                         r.finish == FinishReason::guide || r.finish == FinishReason::dead_end ||
                         r.finish == FinishReason::length;
  if (r.is_final && by_itself && !ended()) {
    add_text(detokenizer_.finish(), piece);
    if (!ended()) {
      const std::string rest = stops_.finish();
      released_bytes_ += rest.size();
      piece.text += rest;
      for (Held& held : held_) held.end = released_bytes_;
      finish_reason_ = r.finish == FinishReason::length     ? "length"
                       : r.finish == FinishReason::dead_end ? "dead_end"
                                                            : "stop";
    }
  }
  release_tokens(piece);
  return piece;
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
