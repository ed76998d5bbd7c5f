#include "cli/bench_serve.h"

#include <cstdio>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/progress.h"
#include "cli/runtime.h"
#include "loadgen/http_load.h"
#include "text/tokenizer.h"

namespace ostro::cli {
namespace {

using nlohmann::json;

// The model's name for the server: the first that it lists.
std::string served_model(const loadgen::BaseUrl& url, const std::string& authorization) {
  const std::string path = "/v1/models";
  const loadgen::HttpAnswer answer = loadgen::http_get(url, path, authorization);
  OSTRO_REQUIRE(answer.status == 200, path, " answers with HTTP ", answer.status,
                answer.status == 401 ? ": give --api_key" : ": give --model");
  const json parsed = parse_json(answer.body, path);
  const JsonObject o(parsed, path);
  const json& models = o.at("data");
  OSTRO_REQUIRE(models.is_array() && !models.empty(), path, " lists no model: give --model");
  return JsonObject(models[0], path).string("id");
}

// Requests in the server's words.
class Caller {
 public:
  Caller(const ServeBenchFlags& flags, std::string model, const txt::Tokenizer* tokenizer,
         const Load& load)
      : flags_(flags), model_(std::move(model)), tokenizer_(tokenizer), load_(load) {}

  loadgen::HttpCall call(const loadgen::Item& item) const {
    loadgen::HttpCall call;
    const bool chat = flags_.endpoint.empty() ? !item.messages.is_null()
                                              : flags_.endpoint.find("chat") != std::string::npos;
    call.path = !flags_.endpoint.empty() ? flags_.endpoint
                : chat                   ? "/v1/chat/completions"
                                         : "/v1/completions";
    json body = {{"model", model_},
                 {"max_tokens", item.max_tokens},
                 {"temperature", flags_.load.temperature},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (load_.ignore_eos(flags_.load)) body["ignore_eos"] = true;
    if (chat) {
      OSTRO_REQUIRE(item.ids.empty() || tokenizer_, call.path,
                    " takes no token ids: give --tokenizer_dir, or a data set of texts");
      body["messages"] = item.messages.is_null()
                             ? json::array({{{"role", "user"}, {"content", words(item)}}})
                             : item.messages;
    } else {
      OSTRO_REQUIRE(item.messages.is_null(), call.path, " takes no \"messages\"");
      body["prompt"] = item.ids.empty() || tokenizer_ ? json(words(item)) : json(item.ids);
    }
    call.body = body.dump(-1, ' ', false, json::error_handler_t::replace);
    return call;
  }

 private:
  std::string words(const loadgen::Item& item) const {
    return item.ids.empty() ? item.prompt : tokenizer_->decode(item.ids);
  }

  const ServeBenchFlags& flags_;
  const std::string model_;
  const txt::Tokenizer* tokenizer_;
  const Load& load_;
};

void check(const ServeBenchFlags& flags) {
  OSTRO_REQUIRE(flags.max_concurrency >= 0, "--max_concurrency is ", flags.max_concurrency,
                "; it must be at least 1");
  OSTRO_REQUIRE(flags.warm_up >= 0, "--num_warmups is ", flags.warm_up, "; it must be 0 or more");
  OSTRO_REQUIRE(flags.timeout > 0 && flags.timeout <= 1e6, "--request_timeout is ", flags.timeout,
                "; it must be more than 0 and at most 1000000");
  OSTRO_REQUIRE(flags.endpoint.empty() || flags.endpoint[0] == '/', "--endpoint is \"",
                flags.endpoint, "\"; it must be a path such as /v1/completions");
}

void print(const ServeBenchFlags& flags, const std::string& model, const loadgen::Summary& s,
           const loadgen::Goodput& goodput) {
  std::printf("%s at %s\n%s", model.c_str(), flags.base_url.c_str(),
              loadgen::to_text(s, goodput).c_str());
  if (s.steady_s > 0)
    std::printf(
        "steady    %.1f output tokens/s over %.2f s, from the first to the last moment of "
        "%lld at once\n",
        s.steady_output_tokens / s.steady_s, s.steady_s, static_cast<long long>(s.most_at_once));
}

nlohmann::ordered_json to_json(const ServeBenchFlags& flags, const std::string& model,
                               const Load& load, const loadgen::Summary& s) {
  nlohmann::ordered_json out = to_json(flags.load, load);
  out["base_url"] = flags.base_url;
  out["model_id"] = model;
  out["max_concurrency"] = flags.max_concurrency > 0 ? nlohmann::ordered_json(flags.max_concurrency)
                                                     : nlohmann::ordered_json(nullptr);
  out.update(loadgen::to_json(s, load.goodput));
  out["steady_duration"] = s.steady_s;
  out["steady_output_throughput"] =
      s.steady_s > 0 ? nlohmann::ordered_json(s.steady_output_tokens / s.steady_s)
                     : nlohmann::ordered_json(nullptr);
  return out;
}

}  // namespace

void ServeBenchFlags::add(CLI::App& app) {
  const char* group = "Server";
  app.add_option("--base_url", base_url, "http://HOST[:PORT][/PREFIX]")
      ->capture_default_str()
      ->group(group);
  app.add_option("--endpoint", endpoint,
                 "path of the completions; default: /v1/completions, or /v1/chat/completions for "
                 "\"messages\"")
      ->group(group);
  app.add_option("--model", model, "the model's name; default: the first that the server lists")
      ->group(group);
  app.add_option("--api_key", api_key, "sent as the bearer token")->group(group);
  app.add_option("--request_timeout", timeout, "seconds that a request may take")
      ->capture_default_str()
      ->group(group);
  load.add(app);
  app.add_option("--max_concurrency", max_concurrency,
                 "requests that are open at once; default: no limit")
      ->group("Requests");
  app.add_option("--num_warmups,--warmup", warm_up,
                 "requests before the measurement, at the same concurrency")
      ->capture_default_str()
      ->group("Requests");
  app.add_option("--tokenizer_dir", load.tokenizer_dir,
                 "send random prompts as this tokenizer's text; default: as token ids")
      ->group("Requests");
  app.add_option("--vocab_size", vocab,
                 "random prompts have ids below this; the tokenizer's, if there is one")
      ->capture_default_str()
      ->group("Requests");
}

int bench_serve(const ServeBenchFlags& flags) {
  check(flags);
  const loadgen::BaseUrl url = loadgen::parse_base_url(flags.base_url);
  std::unique_ptr<txt::Tokenizer> tokenizer;
  if (!flags.load.tokenizer_dir.empty()) tokenizer = txt::load_tokenizer(flags.load.tokenizer_dir);
  const Load load = make_load(flags.load, tokenizer ? tokenizer->vocab_size() : flags.vocab);

  const std::string authorization = flags.api_key.empty() ? "" : "Bearer " + flags.api_key;
  const std::string model = flags.model.empty() ? served_model(url, authorization) : flags.model;
  const Caller caller(flags, model, tokenizer.get(), load);
  for (const loadgen::Item& item : load.items) caller.call(item);  // before the first is sent
  raise_descriptor_limit();

  loadgen::HttpLoadOptions options{.url = url,
                                   .authorization = authorization,
                                   .max_concurrency = std::size_t(flags.max_concurrency),
                                   .timeout_s = flags.timeout,
                                   .progress = {}};
  const std::size_t items = load.items.size();
  const auto call = [&](std::size_t i) { return caller.call(load.items[i % items]); };
  if (flags.warm_up > 0) {
    const std::vector<double> at_once(std::size_t(flags.warm_up), 0.0);
    const auto records = loadgen::run_http_load(options, call, at_once);
    for (const loadgen::Record& r : records)
      OSTRO_REQUIRE(r.completed(), "a warm-up request failed: ", r.error);
  }
  ProgressBar bar("bench serve");
  options.progress = [&](std::size_t ended) {
    bar.show(double(ended) / double(items), [&] { return text(ended, '/', items, " requests"); });
  };
  const auto records = loadgen::run_http_load(options, call, load.arrivals_s);
  bar.clear();

  const loadgen::Summary summary = loadgen::summarise(records, load.goodput);
  OSTRO_REQUIRE(summary.completed > 0, "all ", items,
                " requests failed; the first: ", records[0].error);
  if (flags.load.json != "-") print(flags, model, summary, load.goodput);
  if (!flags.load.json.empty()) write_json(flags.load.json, to_json(flags, model, load, summary));
  return 0;
}

}  // namespace ostro::cli
