#include "guide/matcher.h"

#include <dlpack/dlpack.h>

#include <algorithm>

#include "base/error.h"
#include "guide/grammar.h"
#include "guide/limits.h"

namespace ostro::guide {

void fill(xgrammar::GrammarMatcher& matcher, const TokenSets& tokens,
          std::span<std::uint32_t> allowed) {
  std::int64_t words = std::int64_t(allowed.size());
  DLTensor mask{.data = allowed.data(),
                .device = {kDLCPU, 0},
                .ndim = 1,
                .dtype = {kDLInt, 32, 1},
                .shape = &words,
                .strides = nullptr,
                .byte_offset = 0};
  matcher.FillNextTokenBitmask(&mask);
  for (std::size_t i = 0; i < allowed.size(); ++i) allowed[i] &= tokens.text[i];
}

struct Matcher::State {
  xgrammar::GrammarMatcher matcher;
  bool failed = false;
};

Matcher::Matcher(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)),
      state_(new State{xgrammar::GrammarMatcher(grammar_->compiled)}),
      allowed_(words_for(grammar_->tokens->vocab)) {
  fill();
}
Matcher::~Matcher() = default;
Matcher::Matcher(Matcher&&) noexcept = default;
Matcher& Matcher::operator=(Matcher&&) noexcept = default;

bool Matcher::complete() const { return !state_->failed && state_->matcher.IsCompleted(); }

void Matcher::fill() {
  if (first_) {
    allowed_ = grammar_->first;
  } else {
    try {
      if (!state_->failed) guide::fill(state_->matcher, *grammar_->tokens, allowed_);
    } catch (const std::exception&) {
      state_->failed = true;
    }
    if (state_->failed) std::ranges::fill(allowed_, 0u);
  }
  any_ = std::ranges::any_of(allowed_, [](std::uint32_t word) { return word != 0; });
}

void Matcher::accept(std::int32_t token) {
  OSTRO_CHECK(token >= 0 && token < grammar_->tokens->vocab &&
                  (allowed_[std::size_t(token) / 32] >> (token % 32) & 1),
              "token ", token, " is not allowed by the guide");
  const double begin = thread_seconds();
  try {
    const auto& at_start = grammar_->tokens->at_start;
    const auto other = first_ && grammar_->at_start ? at_start.find(token) : at_start.end();
    const bool taken = other == at_start.end() ? state_->matcher.AcceptToken(token)
                       : other->second.empty() ? true
                                               : state_->matcher.AcceptString(other->second);
    state_->failed = !taken;
  } catch (const std::exception&) {
    state_->failed = true;
  }
  first_ = false;
  fill();
  if (thread_seconds() - begin <= kLongestTokenSeconds) return;
  state_->failed = true;
  fill();
}

}  // namespace ostro::guide
