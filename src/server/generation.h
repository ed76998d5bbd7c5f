// One completion request of a client on its way through the executor: submitted, streamed or
// gathered, answered; cancelled when the client leaves.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/api_error.h"
#include "server/api_request.h"
#include "server/completion_json.h"
#include "server/generator.h"
#include "server/http.h"

namespace ostro::server {

// What a client is told if the executor does not take its request, and why not.
ApiError refusal(SubmitStatus, const std::string& message);

// Choice c of prompt p has the index p * n + c, as at OpenAI. Of the server's thread.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(ApiRequest, std::string request_id, const ServedModel&, Generator&,
             std::shared_ptr<Reply>);

  // Gives all prompts to the executor; throws ApiError (429, 503, 400 ...) if it does not take one,
  // and then none is left there. Returns an id for each prompt: their responses belong here.
  const std::vector<RequestId>& submit();

  // Opens the stream, if one was asked for. After submit().
  void begin();
  void take(const Response&);

  // Ends the answer with an error that is not the client's, unless it has ended.
  void fail(const ApiError&);

  bool ended() const { return ended_; }

 private:
  struct Part {  // of a prompt
    RequestId id = 0;
    std::size_t prompt_scored = 0;  // tokens of the prompt with log-probabilities, of `echo`
    bool echoed = false;
    std::vector<ScoredToken> prompt_tokens;
    std::int64_t cached_tokens = 0;
    bool ended = false;
  };
  struct Output {  // a choice and what is known of it
    Choice choice;
    Choice::Piece whole;  // gathered, if not streaming
  };

  std::size_t part_of(RequestId) const;
  void take_prompt(std::size_t part, const Response&);
  void echo(std::size_t part);
  void give(std::size_t index, Choice::Piece, std::string_view finish);
  void end_part(std::size_t part);
  void finish();
  void leave();
  void cancel_all();
  Usage usage() const;

  ApiRequest request_;
  const ServedModel& model_;
  Generator& generator_;
  std::shared_ptr<Reply> reply_;
  CompletionJson json_;
  std::vector<RequestId> ids_;
  std::vector<Part> parts_;
  std::vector<Output> outputs_;
  std::string pending_;  // events of the response at hand
  bool ended_ = false;
};

}  // namespace ostro::server
