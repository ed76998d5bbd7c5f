// Decode steps that are padded and replayed: with a backend that records on the CPU, so that it is
// known without a GPU that padding and replaying change nothing.
#include "engine/mixed_requests.h"
#include "engine/small_engine.h"

namespace ostro::engine {
namespace {

using testing_engine::SmallEngine;

// Does again what was recorded by calling it again. Every `stale`-th replay is refused, as a
// backend whose scratch memory has moved does.
class Recorder final : public ops::Backend {
 public:
  explicit Recorder(int stale) : stale_(stale) {}

  Buffer allocate(std::size_t bytes) override { return cpu_->allocate(bytes); }
  quant::Weight place(const quant::Weight& host) override { return cpu_->place(host); }
  void copy(const View& from, const View& to) override { cpu_->copy(from, to); }
  void wait() override { cpu_->wait(); }
  ops::Activations e4m3_activations() const override { return cpu_->e4m3_activations(); }
  Device device() const override { return cpu_->device(); }
  std::string description() const override { return cpu_->description(); }
  std::size_t free_memory_bytes() const override { return cpu_->free_memory_bytes(); }

  bool records() const override { return true; }
  std::unique_ptr<ops::Recording> record(const std::function<void()>& work) override {
    ++recorded;
    return std::make_unique<Work>(work);
  }
  bool replay(const ops::Recording& recording) override {
    if (++replays_ % stale_ == 0) return false;
    static_cast<const Work&>(recording).work();
    ++replayed;
    return true;
  }

  int recorded = 0, replayed = 0;

 protected:
  void enqueue(const ops::Draw& op) override { cpu_->run(op); }
  void enqueue(const ops::Embed& op) override { cpu_->run(op); }
  void enqueue(const ops::GatherRows& op) override { cpu_->run(op); }
  void enqueue(const ops::AddRmsNorm& op) override { cpu_->run(op); }
  void enqueue(const ops::Linear& op) override { cpu_->run(op); }
  void enqueue(const ops::RotaryAngles& op) override { cpu_->run(op); }
  void enqueue(const ops::RotaryAppend& op) override { cpu_->run(op); }
  void enqueue(const ops::PagedAttention& op) override { cpu_->run(op); }
  void enqueue(const ops::CopyBlocks& op) override { cpu_->run(op); }
  void enqueue(const ops::Route& op) override { cpu_->run(op); }
  void enqueue(const ops::ExpertMlp& op) override { cpu_->run(op); }
  void enqueue(const ops::Sample& op) override { cpu_->run(op); }

 private:
  struct Work final : ops::Recording {
    explicit Work(std::function<void()> w) : work(std::move(w)) {}
    std::function<void()> work;
  };
  std::unique_ptr<ops::Backend> cpu_ = cpu::make_backend({.threads = 1});
  int stale_;
  int replays_ = 0;
};

Outputs run(const SmallEngine& small, Recorder& recorder, bool record) {
  const auto world = comm::make_single();
  model::EngineWeights weights(small.reader());
  Rank rank(weights, small.config(), model::Mapping{}, recorder, *world, {.record_steps = record},
            Log{});
  Engine engine(rank, small.config().model);
  return run(engine, requests(60), 24);
}

TEST(Recorded, PaddedAndReplayedStepsGiveTheSame) {
  const SmallEngine small;
  Recorder plain(1000000);
  const Outputs want = run(small, plain, false);
  EXPECT_EQ(plain.recorded, 0);
  for (int stale : {1000000, 3}) {
    Recorder recorder(stale);
    EXPECT_EQ(run(small, recorder, true), want);
    EXPECT_GT(recorder.recorded, 1);
    EXPECT_GT(recorder.replayed, 5);
  }
}

TEST(Recorded, WithDynamicRotaryScaling) {
  model::EngineConfig config = testing_engine::small_config();
  config.model.rope_scaling = {.type = model::RopeScaling::Type::dynamic,
                               .factor = 2,
                               .low_freq_factor = 1,
                               .high_freq_factor = 4,
                               .original_context = 48};
  const SmallEngine small(config);
  Recorder plain(1000000), recorder(5);
  EXPECT_EQ(run(small, recorder, true), run(small, plain, false));
  EXPECT_GT(recorder.replayed, 5);
}

}  // namespace
}  // namespace ostro::engine
