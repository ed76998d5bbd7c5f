#include "builder/build.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/json.h"
#include "builder/slice_stream.h"
#include "builder/sources.h"
#include "checkpoint/engine_writer.h"

namespace ostro::builder {
namespace {

// Room for headers and config.json beside the tensors.
constexpr std::uint64_t kHeaderRoom = 4 << 20;

// One build: the workers take ranks from a counter and share the progress.
class Build {
 public:
  Build(const BuildOptions& options, const checkpoint::Checkpoint* source)
      : options_(options), model_(options.config.model) {
    if (source && source->has_weights())
      sources_.emplace(*source, model_);
    else
      for (const DType dtype : {model_.dtype, DType::f8e4m3, DType::i8, DType::u8})
        dummies_.try_emplace(dtype, dtype, options.dummy_seed);
    for (std::int64_t r = 0; r < options.config.mapping.ranks(); ++r) {
      ranks_.push_back(model::tensors_of(model_, options.config.mapping, r));
      progress_.tensors += std::int64_t(ranks_.back().size());
      for (const checkpoint::EngineTensor& t : engine_tensors(r)) progress_.bytes += t.bytes();
    }
  }

  BuildSummary run() {
    const Stopwatch watch;
    checkpoint::EngineWriter writer(options_.output_dir);
    writer.require_space(progress_.bytes + kHeaderRoom * ranks_.size());
    const auto workers =
        std::clamp<std::size_t>(std::size_t(std::max(1, options_.workers)), 1, ranks_.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 1; i < workers; ++i) threads.emplace_back([&] { work(writer); });
    work(writer);
    for (std::thread& t : threads) t.join();
    if (error_) std::rethrow_exception(error_);
    writer.commit(config_text());
    return {.files = int(ranks_.size()) + 1,
            .bytes = writer.bytes(),
            .seconds = watch.seconds(),
            .peak_memory_bytes = peak_memory_bytes(),
            .dummy = !sources_};
  }

 private:
  std::vector<checkpoint::EngineTensor> engine_tensors(std::int64_t rank) const {
    std::vector<checkpoint::EngineTensor> tensors;
    for (const model::TensorSlice& s : ranks_[std::size_t(rank)])
      tensors.push_back({s.name, s.dtype, s.rows, s.cols, s.row_range, s.col_range});
    return tensors;
  }

  void work(checkpoint::EngineWriter& writer) {
    try {
      for (std::int64_t r = next_rank_++; r < std::int64_t(ranks_.size()) && !failed_;
           r = next_rank_++)
        write_rank(writer.rank(int(r), engine_tensors(r)), r);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  void write_rank(checkpoint::RankWriter& file, std::int64_t rank) {
    SliceStream stream;
    for (const model::TensorSlice& slice : ranks_[std::size_t(rank)]) {
      if (failed_) return;
      const ByteSink sink = [&](std::span<const std::byte> bytes) {
        file.append(bytes);
        report(0, bytes.size());
      };
      if (model::is_scale(slice.name))
        stream.scales(slice, sink);
      else if (sources_)
        stream.copy(sources_->find(slice.name), slice, sink);
      else
        stream.draw(dummies_.at(slice.dtype), slice, sink);
      report(1, 0);
    }
    file.finish();
  }

  void report(std::int64_t tensors, std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    progress_.tensors_done += tensors;
    progress_.bytes_done += bytes;
    if (options_.progress) options_.progress(progress_);
  }

  std::string config_text() const {
    model::EngineConfig config = options_.config;
    config.dummy = !sources_;
    nlohmann::json json = model::to_json(config, parse_json(options_.flags_json, "build flags"));
    json["ostro_version"] = OSTRO_VERSION;
    return json.dump();
  }

  const BuildOptions& options_;
  const model::ModelConfig& model_;
  std::optional<Sources> sources_;
  std::map<DType, DummyWeights> dummies_;  // without sources
  std::vector<std::vector<model::TensorSlice>> ranks_;
  std::atomic<std::int64_t> next_rank_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;  // of progress_ and error_
  BuildProgress progress_;
  std::exception_ptr error_;
};

}  // namespace

BuildSummary build(const BuildOptions& options, const checkpoint::Checkpoint* source) {
  model::check(options.config.model);
  model::check(options.config.mapping, options.config.model);
  model::check(options.config.limits, options.config.model);
  return Build(options, source).run();
}

}  // namespace ostro::builder
