// ostro serve: an engine behind an OpenAI-compatible HTTP server.
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "api/make_executor.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/runtime.h"
#include "cli/version.h"
#include "cli/vocabulary.h"
#include "server/serve.h"

namespace ostro::cli {
namespace {

constexpr std::size_t kLargestTemplateBytes = 1 << 20;
constexpr std::int64_t kMostSeconds = 1'000'000;

struct ServeFlags {
  RuntimeFlags runtime;
  server::HttpOptions http;
  std::string tokenizer_dir, model_name, chat_template, api_key_file, ssl_certfile, ssl_keyfile;
  std::vector<std::string> api_keys;
  std::int64_t max_queue_size = 2048;
  double request_timeout = 0, read_timeout = 30, write_timeout = 30;
  std::string capacity_policy = "guaranteed_no_evict";
  bool block_reuse = true;
  std::optional<double> prefill_stall;

  void add(CLI::App& app);
  void check() const;
};

void ServeFlags::add(CLI::App& app) {
  runtime.add(app);
  app.add_option("--tokenizer_dir", tokenizer_dir,
                 "directory with tokenizer.json or tokenizer.model")
      ->required();
  app.add_option("--model_name", model_name,
                 "the model's name for clients; default: the engine directory's");
  app.add_option("--chat_template", chat_template,
                 "a Jinja file; default: the checkpoint's template, or Mistral's form");

  const char* queue = "Requests";
  app.add_option("--max_queue_size", max_queue_size,
                 "requests that may wait, then 429 is answered; 0: no limit")
      ->capture_default_str()
      ->group(queue);
  app.add_option("--request_timeout", request_timeout,
                 "seconds that a request may take; 0: no limit")
      ->capture_default_str()
      ->group(queue);
  app.add_option(
         "--capacity_policy", capacity_policy,
         "guaranteed_no_evict (a request starts when all that run will fit to their ends) or "
         "max_utilization (it may pause later)")
      ->capture_default_str()
      ->group(queue);
  app.add_option(
         "--prefill_stall", prefill_stall,
         "seconds that prompts may hold up running streams, about, in one step; 0: no limit; "
         "default: 0.3 on a CPU, 0 on a GPU")
      ->group(queue);
  app.add_option("--kv_cache_enable_block_reuse", block_reuse,
                 "compute prompts with a common beginning once")
      ->capture_default_str()
      ->group(queue);

  const char* net = "Network";
  app.add_option("--host", http.host, "name or address to listen on")
      ->capture_default_str()
      ->group(net);
  app.add_option("--port", http.port, "port to listen on; 0: any that is free")
      ->capture_default_str()
      ->group(net);
  app.add_option("--api_key", api_keys, "one or more keys, of which clients must send one")
      ->group(net);
  app.add_option("--api_key_file", api_key_file, "the same, a key a line")->group(net);
  app.add_option("--ssl_certfile", ssl_certfile,
                 "a PEM file with the server's certificate (and its chain): HTTPS is spoken")
      ->group(net);
  app.add_option("--ssl_keyfile", ssl_keyfile,
                 "a PEM file with its private key; default: the certificate's file")
      ->group(net);
  app.add_option("--max_connections", http.max_connections, "open connections")
      ->capture_default_str()
      ->group(net);
  app.add_option("--max_body_bytes", http.max_body_bytes, "of a request")
      ->capture_default_str()
      ->group(net);
  app.add_option("--max_header_bytes", http.max_header_bytes, "of a request")
      ->capture_default_str()
      ->group(net);
  app.add_option("--max_unsent_bytes", http.max_unsent_bytes,
                 "of a stream that its client is slow to read, which is then cut off")
      ->capture_default_str()
      ->group(net);
  app.add_option("--read_timeout", read_timeout,
                 "seconds for a header or a body to arrive, and for an idle connection")
      ->capture_default_str()
      ->group(net);
  app.add_option("--write_timeout", write_timeout, "seconds for a client to take what is sent")
      ->capture_default_str()
      ->group(net);
}

void ServeFlags::check() const {
  OSTRO_REQUIRE(max_queue_size >= 0, "--max_queue_size is ", max_queue_size,
                "; it must be 0 (no limit) or more");
  const std::tuple<const char*, double, double> times[] = {
      {"--request_timeout", request_timeout, 0},
      {"--prefill_stall", prefill_stall.value_or(0), 0},
      {"--read_timeout", read_timeout, 0.001},
      {"--write_timeout", write_timeout, 0.001}};
  for (const auto& [flag, seconds, least] : times)
    OSTRO_REQUIRE(seconds >= least && seconds <= kMostSeconds, flag, " is ", seconds,
                  "; it must be from ", least, " to ", kMostSeconds);
  OSTRO_REQUIRE(ssl_keyfile.empty() || !ssl_certfile.empty(), "--ssl_keyfile is ", ssl_keyfile,
                " but there is no --ssl_certfile");
  parse_capacity_policy(capacity_policy);
  const std::tuple<const char*, std::size_t, std::size_t> sizes[] = {
      {"--max_connections", http.max_connections, 1},
      {"--max_body_bytes", http.max_body_bytes, 1},
      {"--max_header_bytes", http.max_header_bytes, 256},
      {"--max_unsent_bytes", http.max_unsent_bytes, 4096}};
  for (const auto& [flag, value, least] : sizes)
    OSTRO_REQUIRE(value >= least && value <= (std::size_t{1} << 30), flag, " is ", value,
                  "; it must be from ", least, " to ", 1 << 30);
}

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(std::int64_t(seconds * 1000));
}

class ExecutorGenerator final : public server::Generator {
 public:
  explicit ExecutorGenerator(Executor& executor) : executor_(executor) {}
  Submission submit(Request r) override { return executor_.submit(std::move(r)); }
  Preparation prepare(const Guide& guide) override { return executor_.prepare(guide); }
  std::shared_ptr<const CompiledGuide> find_prepared(const Guide& guide) override {
    return executor_.find_prepared(guide);
  }
  std::vector<Response> await_responses(std::chrono::milliseconds timeout) override {
    return executor_.await_responses(timeout);
  }
  bool cancel(RequestId id) override { return executor_.cancel(id); }
  bool cancel(RequestId id, std::int32_t sequence) override {
    return executor_.cancel(id, sequence);
  }
  std::string failure() const override { return executor_.failure(); }
  ExecutorStatistics statistics() const override { return executor_.statistics(); }
  std::vector<IterationStatistics> take_iteration_statistics() override {
    return executor_.take_iteration_statistics();
  }

 private:
  Executor& executor_;
};

std::string default_model_name(const RuntimeFlags& flags) {
  if (flags.dummy_weights) return "dummy";
  const auto path = std::filesystem::weakly_canonical(flags.engine_dir);
  return path.filename().empty() ? "ostro" : path.filename().string();
}

txt::ChatTemplate load_template(const ServeFlags& flags, const txt::Tokenizer& tokenizer) {
  const auto text_of = [&](std::optional<std::int32_t> id) {
    return id ? std::string(tokenizer.piece(*id)) : std::string();
  };
  if (!flags.chat_template.empty())
    return txt::ChatTemplate::from_jinja(
        read_file(flags.chat_template, kLargestTemplateBytes),
        {.bos = text_of(tokenizer.bos_id()), .eos = text_of(tokenizer.eos_id())},
        flags.chat_template);
  return txt::ChatTemplate::load(flags.tokenizer_dir, tokenizer);
}

// On rank 0.
void serve_session(const ServeFlags& flags, const server::ServiceOptions& options,
                   const txt::Tokenizer& tokenizer, const txt::ChatTemplate& chat,
                   Session& session) {
  const bool on_cpu = session.backend.device() == Device::cpu;
  Executor executor =
      api::make_executor(session.rank, session.config,
                         {.max_queue_size = flags.max_queue_size,
                          .capacity_policy = parse_capacity_policy(flags.capacity_policy),
                          .prefill_stall_s = flags.prefill_stall.value_or(on_cpu ? 0.3 : 0),
                          .kv_cache = {.block_reuse = flags.block_reuse},
                          .vocabulary = vocabulary_of(tokenizer, session.config.model.vocab)});
  ExecutorGenerator generator(executor);
  const ExecutorStatistics kv = executor.statistics();
  const server::ServedModel model{
      .name = flags.model_name.empty() ? default_model_name(flags.runtime) : flags.model_name,
      .info = executor.model(),
      .tokenizer = tokenizer,
      .chat = chat,
      .max_tokens = std::min(executor.model().context, kv.kv_blocks_total * kv.kv_block_tokens)};
  server::serve(flags.http, options, model, generator, session.log, [&](std::uint16_t port) {
    const bool v6 = flags.http.host.find(':') != std::string::npos;
    std::printf("Serving %s on http%s://%s%s%s:%d\n", model.name.c_str(), flags.http.tls ? "s" : "",
                v6 ? "[" : "", flags.http.host.c_str(), v6 ? "]" : "", int(port));
    std::fflush(stdout);
  });
  executor.shutdown(Drain::no);  // requests whose clients have left, at most
  api::rethrow_failure(executor);
}

}  // namespace

int serve_command(const Arguments& args) {
  CLI::App app("Serves an engine over HTTP, as OpenAI's API.", "ostro serve");
  ServeFlags flags;
  flags.add(app);
  if (!parse(app, args)) return 0;
  flags.check();
  flags.http.read_timeout = milliseconds(flags.read_timeout);
  flags.http.write_timeout = milliseconds(flags.write_timeout);
  server::ServiceOptions options{.version = kVersion,
                                 .api_keys = flags.api_keys,
                                 .time_limit = milliseconds(flags.request_timeout)};
  std::unique_ptr<txt::Tokenizer> tokenizer;
  std::optional<txt::ChatTemplate> chat;
  if (prints()) {
    if (!flags.api_key_file.empty())
      for (std::string& key : server::read_key_file(flags.api_key_file))
        options.api_keys.push_back(std::move(key));
    const server::ApiKeys checked(options.api_keys);  // before an engine is loaded
    if (!flags.ssl_certfile.empty())
      flags.http.tls = server::load_tls(
          flags.ssl_certfile, flags.ssl_keyfile.empty() ? flags.ssl_certfile : flags.ssl_keyfile);
    tokenizer = txt::load_tokenizer(flags.tokenizer_dir);
    chat = load_template(flags, *tokenizer);
  }
  raise_descriptor_limit();
  return run_on_ranks(flags.runtime, 0, [&](Session& session) {
    serve_session(flags, options, *tokenizer, *chat, session);
  });
}

}  // namespace ostro::cli
