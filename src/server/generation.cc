#include "server/generation.h"

#include <algorithm>

#include "base/error.h"

namespace ostro::server {

ApiError refusal(SubmitStatus status, const std::string& message) {
  switch (status) {
    case SubmitStatus::queue_full:
      return {429, "the queue is full: " + message, "", "queue_full"};
    case SubmitStatus::shut_down:
      return {503, "the server is shutting down", "", "shutting_down"};
    case SubmitStatus::invalid:
      return {400, message, "", "invalid_value"};
    case SubmitStatus::unsupported:
      return {501, message, "", "unsupported_value"};
    default:
      return {500, "the engine has stopped"};
  }
}

Generation::Generation(ApiRequest request, std::string request_id, const ServedModel& model,
                       Generator& generator, std::shared_ptr<Reply> reply)
    : request_(std::move(request)),
      model_(model),
      generator_(generator),
      reply_(std::move(reply)),
      json_(request_.chat, std::move(request_id), model.name, model.tokenizer,
            request_.log_probs.has_value()),
      parts_(request_.prompts.size()) {
  for (const Prompt& prompt : request_.prompts)
    for (std::int32_t i = 0; i < request_.base.num_return_sequences; ++i)
      // A completion goes on from its prompt's text; a chat's answer stands for itself.
      outputs_.push_back(
          {.choice = Choice(model.tokenizer, request_.chat ? std::vector<TokenId>{} : prompt.ids,
                            request_.stops, request_.tools),
           .whole = {}});
}

const std::vector<RequestId>& Generation::submit() {
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Submission s = generator_.submit(engine_request(request_, request_.prompts[i], model_));
    if (!s) {
      cancel_all();
      ended_ = true;
      throw refusal(s.status, s.message);
    }
    parts_[i].id = s.id;
    ids_.push_back(s.id);
  }
  return ids_;
}

void Generation::begin() {
  reply_->when_gone([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->leave();
  });
  if (!request_.stream) {
    for (std::size_t p = 0; p < parts_.size(); ++p)
      if (request_.echo && !request_.log_probs) echo(p);
    return;
  }
  reply_->open_stream();
  if (request_.chat)
    for (std::size_t i = 0; i < outputs_.size(); ++i)
      pending_ += sse_event(json_.role_chunk(i, request_.include_usage));
  for (std::size_t p = 0; p < parts_.size(); ++p)
    if (request_.echo && !request_.log_probs) echo(p);
  reply_->write(std::exchange(pending_, {}));
}

std::size_t Generation::part_of(RequestId id) const {
  return std::size_t(std::find(ids_.begin(), ids_.end(), id) - ids_.begin());
}

void Generation::take(const Response& r) {
  const std::size_t p = part_of(r.id);
  if (ended_ || parts_[p].ended) return;
  if (r.finish == FinishReason::error) return fail({500, "the engine has stopped"});
  if (r.finish == FinishReason::timed_out)
    return fail({504, "the request was not finished within the server's time limit"});
  const auto n = std::size_t(request_.base.num_return_sequences);
  const std::size_t index = p * n + std::size_t(r.sequence);
  Choice& choice = outputs_[index].choice;
  if (r.finish == FinishReason::cancelled && choice.ended()) return;  // by a stop string
  if (r.finish == FinishReason::cancelled) return fail({503, "the server is shutting down"});

  parts_[p].cached_tokens = std::min(r.statistics.reused_tokens,
                                     r.statistics.prompt_tokens);  // n sequences reuse n times
  take_prompt(p, r);
  if (!choice.ended()) {
    Choice::Piece piece = choice.push(r);
    give(index, std::move(piece), choice.finish_reason());
  }
  const auto first = outputs_.begin() + std::ptrdiff_t(p * n);
  if (std::all_of(first, first + std::ptrdiff_t(n),
                  [](const Output& o) { return o.choice.ended(); }))
    end_part(p);
  else if (choice.ended() && !r.is_final)
    generator_.cancel(r.id, r.sequence);
  if (request_.stream && !pending_.empty()) reply_->write(std::exchange(pending_, {}));
  if (std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.ended; }))
    finish();
}

// Gathers the prompt's log-probabilities; with the last of them the prompt is echoed.
void Generation::take_prompt(std::size_t p, const Response& r) {
  Part& part = parts_[p];
  if (!request_.echo || !request_.log_probs || part.echoed) return;
  const std::vector<TokenId>& ids = request_.prompts[p].ids;
  if (part.prompt_tokens.empty()) part.prompt_tokens.push_back({.id = ids[0], .log_prob = {}});
  for (std::size_t i = 0; i < r.prompt_log_probs.size(); ++i) {
    ScoredToken token{.id = ids.at(part.prompt_tokens.size()), .log_prob = r.prompt_log_probs[i]};
    if (i < r.prompt_alternatives.size()) token.alternatives = r.prompt_alternatives[i];
    part.prompt_tokens.push_back(std::move(token));
  }
  if (part.prompt_tokens.size() == ids.size()) echo(p);
}

void Generation::echo(std::size_t p) {
  parts_[p].echoed = true;
  const auto n = std::size_t(request_.base.num_return_sequences);
  for (std::size_t i = p * n; i < (p + 1) * n; ++i)
    give(i, {.text = request_.prompts[p].text, .tokens = parts_[p].prompt_tokens}, "");
}

void Generation::give(std::size_t index, Choice::Piece piece, std::string_view finish) {
  if (piece.text.empty() && piece.calls.empty() && piece.tokens.empty() && finish.empty()) return;
  if (request_.stream) {
    pending_ += sse_event(json_.chunk(index, piece, finish, request_.include_usage));
    return;
  }
  Choice::Piece& whole = outputs_[index].whole;
  whole.text += piece.text;
  std::move(piece.calls.begin(), piece.calls.end(), std::back_inserter(whole.calls));
  std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(whole.tokens));
}

// All choices have ended. The executor may not know: a stop string is no end for it.
void Generation::end_part(std::size_t p) {
  parts_[p].ended = true;
  generator_.cancel(parts_[p].id);
}

void Generation::finish() {
  ended_ = true;
  if (request_.stream) {
    std::string end;
    if (request_.include_usage) end += sse_event(json_.usage_chunk(usage()));
    end += kSseDone;
    reply_->write(end);
    reply_->close_stream();
    return;
  }
  std::vector<CompletionJson::WholeChoice> choices;
  for (Output& o : outputs_)
    choices.push_back({.piece = std::move(o.whole), .finish = o.choice.finish_reason()});
  reply_->send({.body = json_.whole(choices, usage())});
}

void Generation::fail(const ApiError& error) {
  if (ended_) return;
  ended_ = true;
  cancel_all();
  if (!request_.stream) return reply_->send(error_response(error));
  reply_->write(std::exchange(pending_, {}) + sse_event(error_body(error)));
  reply_->close_stream();
}

void Generation::leave() {
  if (ended_) return;
  ended_ = true;
  cancel_all();
}

void Generation::cancel_all() {
  for (RequestId id : ids_) generator_.cancel(id);
}

Usage Generation::usage() const {
  Usage u;
  for (std::size_t p = 0; p < parts_.size(); ++p) {
    u.prompt_tokens += std::int64_t(request_.prompts[p].ids.size());
    u.cached_tokens += parts_[p].cached_tokens;
  }
  for (const Output& o : outputs_) u.completion_tokens += o.choice.tokens();
  return u;
}

}  // namespace ostro::server
