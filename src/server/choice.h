// One generated sequence: its tokens become text that is safe to send.
//
// Text that may still turn out to be a stop string is held back, and so are the log-probabilities
// of its tokens: nothing of a stop string reaches the client, however tokens cut it.
#pragma once

#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ostro/executor.h"
#include "server/tool_calls.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace ostro::server {

// A token of the answer (or, with `echo`, of the prompt) as it is reported under "logprobs".
struct ScoredToken {
  TokenId id = 0;
  std::optional<float> log_prob;  // none for the first token of a prompt
  std::vector<TokenLogProb> alternatives = {};
};

class Choice {
 public:
  struct Piece {
    std::string text;
    std::vector<ToolCallDelta> calls = {};
    std::vector<ScoredToken> tokens =
        {};  // those whose text is out, if log-probabilities were asked for
  };

  // `context`: the tokens before the first, where the text goes on from theirs; else empty.
  // `tools`: whose calls are looked for.
  Choice(const txt::Tokenizer& tokenizer, std::span<const TokenId> context,
         std::vector<std::string> stops, const std::optional<ToolUse>& tools = {});

  // What has become certain with a response of this sequence. Nothing once it has ended.
  Piece push(const Response&);

  // "stop", "tool_calls", "length" or "dead_end" once the sequence has ended, by itself or by a
  // stop string or its calls; "" before, and when it was broken off.
  std::string_view finish_reason() const { return finish_reason_; }
  bool ended() const { return !finish_reason_.empty(); }
  std::int64_t tokens() const { return tokens_; }

 private:
  struct Held {
    ScoredToken token;
    std::optional<std::size_t> end;  // bytes of text up to its end; none: its text is not whole yet
  };
  void read_tokens(const Response&, Piece& piece);
  void end_text(FinishReason, Piece& piece);
  void read_calls(Piece& piece);
  void add_text(std::string_view text, Piece& piece);
  void release_tokens(Piece& piece);

  txt::IncrementalDetokenizer detokenizer_;
  txt::StopStrings stops_;
  std::optional<ToolCallReader> calls_;  // none: there are no tools
  std::optional<TokenId> call_token_;    // that means kToolCalls and has no text
  std::deque<Held> held_;
  std::size_t made_bytes_ = 0;      // by the detokenizer
  std::size_t released_bytes_ = 0;  // to the client
  std::int64_t tokens_ = 0;
  std::string_view finish_reason_;
};

}  // namespace ostro::server
