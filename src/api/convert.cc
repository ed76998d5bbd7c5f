#include "api/convert.h"

#include <utility>

namespace ostro::api {
namespace {

template <class T>
void append(std::vector<T>&& from, std::vector<T>& to) {
  if (to.empty()) {
    to = std::move(from);
    return;
  }
  for (T& value : from) to.push_back(std::move(value));
}

std::vector<TokenLogProb> to_public(const std::vector<engine::TokenLogProb>& from) {
  std::vector<TokenLogProb> to;
  for (const engine::TokenLogProb& t : from) to.push_back({t.token, t.log_prob});
  return to;
}

engine::EarlyStopping to_engine(EarlyStopping early) {
  switch (early) {
    case EarlyStopping::no:
      return engine::EarlyStopping::no;
    case EarlyStopping::yes:
      return engine::EarlyStopping::yes;
    case EarlyStopping::never:
      return engine::EarlyStopping::never;
  }
  OSTRO_THROW(InvalidArgument, "early_stopping is ", int(early));
}

}  // namespace

engine::Request to_engine(Request r) {
  SamplingConfig& s = r.sampling;
  return {.prompt = std::move(r.prompt),
          .max_new_tokens = r.max_new_tokens,
          .sampling = {.temperature = s.temperature,
                       .top_k = s.top_k,
                       .top_p = s.top_p,
                       .min_p = s.min_p,
                       .seed = s.seed,
                       .repetition_penalty = s.repetition_penalty,
                       .presence_penalty = s.presence_penalty,
                       .frequency_penalty = s.frequency_penalty,
                       .no_repeat_ngram_size = s.no_repeat_ngram_size,
                       .logit_bias = std::move(s.logit_bias),
                       .bad_words = std::move(s.bad_words),
                       .min_tokens = s.min_tokens},
          .end_ids = std::move(r.end_ids),
          .logits = r.logits,
          .prompt_logits = r.prompt_logits,
          .prompt_log_probs = r.prompt_log_probs.has_value(),
          .sequences = r.num_return_sequences,
          .stop_sequences = std::move(r.stop_sequences),
          .log_probs = r.log_probs.has_value(),
          .alternatives = r.log_probs.value_or(0),
          .prompt_alternatives = r.prompt_log_probs.value_or(0),
          .priority = r.priority,
          .user = std::move(r.user),
          .cache_salt = std::move(r.cache_salt),
          .beams = {.width = s.num_beams,
                    .length_penalty = s.length_penalty,
                    .early_stopping = to_engine(s.early_stopping),
                    .diversity_rate = s.beam_search_diversity_rate},
          .guide = nullptr};
}

guide::Guide to_engine(const Guide& g) {
  constexpr guide::Kind kinds[] = {guide::Kind::json_object, guide::Kind::json_schema,
                                   guide::Kind::regex, guide::Kind::grammar, guide::Kind::choice};
  OSTRO_REQUIRE(std::size_t(g.kind) < std::size(kinds), "there is no guide of kind ", int(g.kind));
  return {.kind = kinds[std::size_t(g.kind)],
          .text = g.text,
          .at_start = g.at_start,
          .any_spaces = g.any_spaces};
}

guide::Vocabulary to_engine(const Vocabulary& v) { return {v.bytes, v.at_start}; }

engine::EngineOptions to_engine(const ExecutorConfig& config) {
  return {.capacity = config.capacity_policy == CapacityPolicy::max_utilization
                          ? sched::Capacity::max_utilization
                          : sched::Capacity::guaranteed_no_evict,
          .block_reuse = config.kv_cache.block_reuse,
          .prefill_stall_seconds = config.prefill_stall_s};
}

engine::RankOptions rank_options(const ExecutorConfig& config, std::int64_t ranks_on_device) {
  return {.max_batch_size = config.max_batch_size,
          .max_num_tokens = config.max_num_tokens,
          .max_logit_rows = config.max_logit_rows,
          .kv_cache_tokens = config.kv_cache.max_tokens,
          .kv_cache_free_fraction = config.kv_cache.free_memory_fraction,
          .ranks_on_device = int(ranks_on_device),
          .fp8_prompts = config.fp8_prompts};
}

FinishReason to_public(engine::Finish finish) {
  switch (finish) {
    case engine::Finish::none:
      return FinishReason::none;
    case engine::Finish::length:
      return FinishReason::length;
    case engine::Finish::end_id:
      return FinishReason::end_id;
    case engine::Finish::stop:
      return FinishReason::stop;
    case engine::Finish::guide:
      return FinishReason::guide;
    case engine::Finish::dead_end:
      return FinishReason::dead_end;
    case engine::Finish::cancelled:
      return FinishReason::cancelled;
  }
  OSTRO_THROW(InternalError, "a sequence finished with ", int(finish));
}

ModelInfo model_info(const model::ModelConfig& config, bool dummy) {
  ModelInfo info{.architecture = config.architecture,
                 .vocab = config.vocab,
                 .context = config.context,
                 .bos_id = std::nullopt,
                 .end_ids = {config.eos.begin(), config.eos.end()},
                 .dummy = dummy};
  if (config.bos >= 0) info.bos_id = TokenId(config.bos);
  return info;
}

void add(engine::Event&& event, const Wanted& wanted, Response& r) {
  append(std::move(event.prompt_log_probs), r.prompt_log_probs);
  append(std::move(event.prompt_logits), r.prompt_logits);
  if (wanted.beams) r.score = event.score;
  for (const auto& alternatives : event.prompt_alternatives)
    r.prompt_alternatives.push_back(to_public(alternatives));
  if (!event.has_token) return;
  r.tokens.push_back(event.token);
  if (wanted.log_probs) {
    r.log_probs.push_back(event.log_prob);
    if (!wanted.beams) r.score += event.log_prob;
  }
  if (wanted.alternatives) r.alternatives.push_back(to_public(event.alternatives));
  append(std::move(event.logits), r.logits);
}

}  // namespace ostro::api
