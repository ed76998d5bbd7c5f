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
  std::size_t free_memory_bytes() const override {
    return (std::size_t{1} << 40) - std::size_t(kept) * bytes_each;
  }

  bool records() const override { return true; }
  std::unique_ptr<ops::Recording> record(const std::function<void()>& work) override {
    ++recorded;
    most_kept = std::max(most_kept, kept + 1);
    return std::make_unique<Work>(work, kept);
  }
  bool replay(const ops::Recording& recording) override {
    if (++replays_ % stale_ == 0) return false;
    static_cast<const Work&>(recording).work();
    ++replayed;
    return true;
  }

  int recorded = 0, replayed = 0, kept = 0, most_kept = 0;
  std::size_t bytes_each = 0;  // of a recording

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
    Work(std::function<void()> w, int& kept) : work(std::move(w)), kept_(kept) { ++kept_; }
    ~Work() override { --kept_; }
    std::function<void()> work;

   private:
    int& kept_;
  };
  std::unique_ptr<ops::Backend> cpu_ = cpu::make_backend({.threads = 1});
  int stale_;
  int replays_ = 0;
};

// Recordings of which `fit` fit into what is planned for them; 0: they take nothing.
Outputs run(const SmallEngine& small, Recorder& recorder, bool record, int fit = 0,
            const Log& log = {}) {
  const auto world = comm::make_single();
  model::EngineWeights weights(small.reader());
  Rank rank(weights, small.config(), model::Mapping{}, recorder, *world, {.record_steps = record},
            log);
  if (fit > 0) recorder.bytes_each = rank.limits().most_recorded_bytes / std::size_t(fit) - 1;
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

TEST(Recorded, AsManyAsFitWhereRecordingsTakeMemory) {
  const SmallEngine small;
  Recorder plain(1000000), all(1000000);
  const Outputs want = run(small, plain, false);
  EXPECT_EQ(run(small, all, true), want);
  ASSERT_GT(all.most_kept, 3);
  for (int stale : {1000000, 3}) {
    Recorder recorder(stale);
    std::vector<std::string> lines;
    const Log log(LogLevel::info,
                  [&](LogLevel, std::string_view line) { lines.emplace_back(line); });
    EXPECT_EQ(run(small, recorder, true, 3, log), want);
    EXPECT_EQ(recorder.most_kept, 3);
    EXPECT_GT(recorder.replayed, 5);
    EXPECT_EQ(std::ranges::count_if(lines,
                                    [](const std::string& line) {
                                      return line.starts_with("rank 0: CUDA graphs take ") &&
                                             line.ends_with(
                                                 "decode steps of further shapes run without one");
                                    }),
              1);
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
