#include "server/api_request.h"

#include <algorithm>
#include <charconv>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "server/api_error.h"
#include "server/beam_fields.h"
#include "server/fields.h"
#include "server/guide_fields.h"
#include "server/prompt.h"

namespace ostro::server {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostChoices = 128;
constexpr std::int64_t kMostAlternatives = 20;
constexpr std::size_t kMostStops = 16;
constexpr std::size_t kLongestStopBytes = 1024;
constexpr std::int64_t kDefaultCompletionTokens = 16;  // OpenAI's

json parse_body(std::string_view body) {
  try {
    return parse_json(body, "the body", kMostUntrustedKeys);
  } catch (const InvalidArgument& e) {
    throw ApiError(400, e.what());
  }
}

void check_model(Fields& fields, const ServedModel& model) {
  const auto name = fields.string("model");
  if (name && *name != model.name)
    throw ApiError(404,
                   text("there is no model \"", *name, "\"; this server has \"", model.name, '"'),
                   "model", "model_not_found");
}

std::vector<std::string> read_stops(Fields& fields) {
  const json* value = fields.any("stop");
  if (!value) return {};
  const std::string wanted = text("a string or a list of at most ", kMostStops,
                                  " strings, each of 1 to ", kLongestStopBytes, " bytes");
  std::vector<std::string> stops;
  if (value->is_string()) {
    stops.push_back(value->get<std::string>());
  } else {
    if (!value->is_array() || value->size() > kMostStops) refuse_value("stop", wanted, *value);
    for (const json& stop : *value) {
      if (!stop.is_string()) refuse_value("stop", wanted, *value);
      stops.push_back(stop.get<std::string>());
    }
  }
  for (const std::string& stop : stops)
    if (stop.empty() || stop.size() > kLongestStopBytes) refuse_value("stop", wanted, *value);
  return stops;
}

std::vector<std::pair<TokenId, float>> read_bias(Fields& fields, const ServedModel& model) {
  const json* value = fields.any("logit_bias");
  if (!value) return {};
  if (!value->is_object())
    refuse_value("logit_bias", "an object of token ids and numbers from -100 to 100", *value);
  std::vector<std::pair<TokenId, float>> all;
  for (const auto& [key, bias] : value->items()) {
    TokenId id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= model.info.vocab)
      throw ApiError(400,
                     text("\"logit_bias\" names the token \"", shown(key), "\"; ids are 0 to ",
                          model.info.vocab - 1),
                     "logit_bias", "invalid_value");
    if (!bias.is_number() || !(std::abs(bias.get<double>()) <= 100))
      refuse_value("logit_bias." + key, "a number from -100 to 100", bias);
    all.emplace_back(id, bias.get<float>());
  }
  return all;
}

SamplingConfig read_sampling(Fields& fields, const ServedModel& model) {
  SamplingConfig s;
  s.temperature = float(fields.number("temperature", 0, 2).value_or(1));
  s.top_k =
      std::int32_t(std::max<std::int64_t>(0, fields.integer("top_k", -1, INT32_MAX).value_or(0)));
  s.top_p = float(fields.number("top_p", 0, 1).value_or(1));
  if (s.top_p == 0) s.top_k = 1;  // the most likely token alone; for the executor 0 means all
  s.min_p = float(fields.number("min_p", 0, 1).value_or(0));
  s.presence_penalty = float(fields.number("presence_penalty", -2, 2).value_or(0));
  s.frequency_penalty = float(fields.number("frequency_penalty", -2, 2).value_or(0));
  s.repetition_penalty = float(fields.number("repetition_penalty", 0.01, 100).value_or(1));
  s.logit_bias = read_bias(fields, model);
  if (const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX)) {
    s.seed = std::uint64_t(*seed);
  } else {
    static std::mt19937_64 random{std::random_device{}()};  // of the server's thread
    s.seed = random();
  }
  return s;
}

void read_streaming(Fields& fields, ApiRequest& r) {
  r.stream = fields.boolean("stream").value_or(false);
  const json* value = fields.any("stream_options");
  if (!value) return;
  if (!r.stream)
    throw ApiError(400, "\"stream_options\" goes with \"stream\": true", "stream_options",
                   "invalid_value");
  Fields options(*value, "stream_options");
  r.include_usage = options.boolean("include_usage").value_or(false);
  options.refuse_others();
}

// The fields that both routes have.
ApiRequest read_common(Fields& fields, std::string_view body, const ServedModel& model) {
  ApiRequest r;
  check_model(fields, model);
  read_streaming(fields, r);
  r.stops = read_stops(fields);
  r.base.sampling = read_sampling(fields, model);
  r.base.num_return_sequences = std::int32_t(fields.integer("n", 1, kMostChoices).value_or(1));
  r.base.guide = read_guide(fields, body);
  r.base.user = fields.string("user").value_or("");
  r.base.cache_salt = fields.string("cache_salt").value_or("");
  if (!fields.boolean("ignore_eos").value_or(false)) {
    r.base.end_ids = model.info.end_ids;
    if (r.base.end_ids.empty() && model.tokenizer.eos_id())
      r.base.end_ids = {*model.tokenizer.eos_id()};
  }
  return r;
}

// Names both numbers instead of cutting a prompt or an answer that was asked for.
void check_lengths(const ApiRequest& r, const ServedModel& model, const char* param) {
  for (const Prompt& prompt : r.prompts) {
    const auto length = std::int64_t(prompt.ids.size());
    const std::int64_t wanted = r.open_length ? 1 : r.base.max_new_tokens;
    if (length + wanted > model.max_tokens)
      throw ApiError(400,
                     text("the prompt has ", length, " tokens and ", wanted,
                          r.open_length ? " at least is" : " are",
                          " to be generated; this server has room for ", model.max_tokens),
                     param, "context_length_exceeded");
  }
}

}  // namespace

ApiRequest parse_completion(std::string_view body, const ServedModel& model) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  ApiRequest r = read_common(fields, body, model);
  const json* prompt = fields.any("prompt");
  if (!prompt) missing("prompt");
  r.base.max_new_tokens =
      fields.integer("max_tokens", 0, INT32_MAX).value_or(kDefaultCompletionTokens);
  r.echo = fields.boolean("echo").value_or(false);
  if (const auto k = fields.integer("logprobs", 0, kMostAlternatives))
    r.log_probs = r.base.log_probs = std::int32_t(*k);
  if (r.echo) r.base.prompt_log_probs = r.log_probs;
  fields.only("suffix", "");
  read_beams(fields, r);
  fields.refuse_others();
  if (r.base.max_new_tokens == 0 && !r.echo)
    throw ApiError(400, "\"max_tokens\" may be 0 only with \"echo\": true", "max_tokens",
                   "invalid_value");
  r.prompts = read_prompts(*prompt, model);
  check_lengths(r, model, "prompt");
  return r;
}

ApiRequest parse_chat(std::string_view body, const ServedModel& model) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  ApiRequest r = read_common(fields, body, model);
  r.chat = true;
  if (r.base.guide) r.base.guide->at_start = true;
  r.tools = read_tools(fields, body);
  if (r.tools && r.base.guide)
    throw ApiError(400,
                   "the answer can be a guided text or call tools, not both; with \"tool_choice\": "
                   "\"none\" it is guided",
                   "tools", "invalid_value");
  if (r.tools && r.tools->forced) r.base.guide = guide_of(*r.tools);
  const json* messages = fields.any("messages");
  if (!messages) missing("messages");
  const auto old_name = fields.integer("max_tokens", 1, INT32_MAX);
  const auto length = fields.integer("max_completion_tokens", 1, INT32_MAX);
  if (old_name && length && *old_name != *length)
    throw ApiError(400, "\"max_tokens\" and \"max_completion_tokens\" differ",
                   "max_completion_tokens", "invalid_value");
  r.open_length = !old_name && !length;
  r.base.max_new_tokens = length ? *length : old_name.value_or(0);
  const bool log_probs = fields.boolean("logprobs").value_or(false);
  const auto alternatives = fields.integer("top_logprobs", 0, kMostAlternatives);
  if (alternatives && !log_probs)
    throw ApiError(400, "\"top_logprobs\" goes with \"logprobs\": true", "top_logprobs",
                   "invalid_value");
  if (log_probs) r.log_probs = r.base.log_probs = std::int32_t(alternatives.value_or(0));
  fields.only("store", false);
  read_beams(fields, r);
  fields.refuse_others();
  r.prompts = {read_messages(*messages, r.tools, model)};
  check_lengths(r, model, "messages");
  return r;
}

Request engine_request(const ApiRequest& r, const Prompt& prompt, const ServedModel& model) {
  Request request = r.base;
  request.prompt = prompt.ids;
  request.streaming = true;  // stop strings are looked for as tokens come
  if (r.open_length) request.max_new_tokens = model.max_tokens - std::int64_t(prompt.ids.size());
  return request;
}

std::vector<TokenId> parse_tokenize(std::string_view body, const ServedModel& model) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  check_model(fields, model);
  const auto words = fields.string("prompt");
  const json* messages = fields.any("messages");
  const auto special = fields.boolean("add_special_tokens");
  const auto tools = read_tools(fields, body);
  fields.refuse_others();
  if (words.has_value() == (messages != nullptr))
    throw ApiError(400, "\"prompt\" or \"messages\" is wanted, one of them", "prompt",
                   "missing_field");
  if (tools && !messages)
    throw ApiError(400, "\"tools\" goes with \"messages\"", "tools", "invalid_value");
  if (!messages)
    return model.tokenizer.encode(*words, {.add_special_tokens = special.value_or(true)});
  if (special)
    throw ApiError(400, "\"add_special_tokens\" goes with \"prompt\"", "add_special_tokens",
                   "invalid_value");
  return read_messages(*messages, tools, model).ids;
}

std::vector<TokenId> parse_detokenize(std::string_view body, const ServedModel& model) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  check_model(fields, model);
  const json* tokens = fields.any("tokens");
  if (!tokens) missing("tokens");
  fields.refuse_others();
  return read_ids(*tokens, "tokens", model);
}

}  // namespace ostro::server
