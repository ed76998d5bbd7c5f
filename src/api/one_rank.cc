#include "api/one_rank.h"

#include "api/make_cuda_backend.h"
#include "backends/cpu/backend.h"
#include "comm/communicator.h"
#include "model/tactics_file.h"

namespace ostro::api {
namespace {

Log log_to(const std::function<void(Severity, std::string_view)>& sink) {
  if (!sink) return {};
  return {LogLevel::debug, [sink](LogLevel level, std::string_view line) {
            sink(level == LogLevel::debug     ? Severity::debug
                 : level == LogLevel::info    ? Severity::info
                 : level == LogLevel::warning ? Severity::warning
                                              : Severity::error,
                 line);
          }};
}

model::EngineConfig read_config(const checkpoint::EngineReader& reader) {
  return model::parse_engine_config(reader.config_text(), (reader.dir() / "config.json").string());
}

std::unique_ptr<ops::Backend> make_backend(const ExecutorConfig& c, const Log& log) {
  if (c.device == "cuda") return make_cuda_backend();
  if (c.device == "auto")
    if (auto gpu = find_cuda_backend(log)) return gpu;
  return cpu::make_backend({.threads = c.threads});
}

std::unique_ptr<ops::Backend> make_tuned_backend(const ExecutorConfig& c, const Log& log) {
  auto backend = make_backend(c, log);
  model::use_tactics(c.engine_dir, *backend, log);
  return backend;
}

struct OneRank final : Resources {
  explicit OneRank(const ExecutorConfig& c)
      : reader(c.engine_dir),
        config(read_config(reader)),
        backend(make_tuned_backend(c, log_to(c.log))),
        world(comm::make_single()),
        weights(reader),
        rank(weights, config, model::Mapping{}, *backend, *world, rank_options(c, 1),
             log_to(c.log)) {}

  checkpoint::EngineReader reader;
  model::EngineConfig config;
  std::unique_ptr<ops::Backend> backend;
  std::unique_ptr<comm::Communicator> world;
  model::EngineWeights weights;
  engine::Rank rank;
};

}  // namespace

std::unique_ptr<Executor::Core> load_one_rank(const ExecutorConfig& config) {
  OSTRO_REQUIRE(!config.engine_dir.empty(), "engine_dir is empty: it names the directory that ",
                "`ostro build` wrote");
  OSTRO_REQUIRE(config.device == "auto" || config.device == "cpu" || config.device == "cuda",
                "device is \"", config.device, "\"; it must be auto, cpu or cuda");
  auto loaded = std::make_unique<OneRank>(config);
  OneRank& r = *loaded;
  return std::make_unique<Executor::Core>(r.rank, r.config, config, std::move(loaded));
}

}  // namespace ostro::api
