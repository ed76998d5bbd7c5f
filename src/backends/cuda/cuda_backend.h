// The CUDA backend's state; backend.cc, products.cc and attention.cc hold its parts.
#pragma once

#include <functional>
#include <vector>

#include "backends/cuda/kernels/moe.h"
#include "backends/cuda/kernels/quantise.h"
#include "backends/cuda/memory.h"
#include "backends/cuda/queue.h"
#include "backends/cuda/staging.h"
#include "ops/backend.h"

namespace ostro::cuda {

// The stream of a backend, made before and destroyed after everything that uses it.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaBackend final : public ops::Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  Buffer allocate(std::size_t bytes) override;
  quant::Weight place(const quant::Weight& host) override;
  void copy(const View& from, const View& to) override;
  void wait() override;
  ops::Activations e4m3_activations() const override { return ops::Activations::e4m3_per_token; }
  std::vector<ops::Tactic> tactics(const ops::Product&, std::int64_t tokens) const override;
  void use(const ops::Tactics&) override;
  bool records() const override { return true; }
  std::unique_ptr<ops::Recording> record(const std::function<void()>& work) override;
  bool replay(const ops::Recording&) override;
  Device device() const override { return Device::cuda; }
  std::string description() const override;
  std::size_t free_memory_bytes() const override;

  // Device memory that the workspaces of its kernels hold now: what plan::kernel_scratch_bytes()
  // bounds.
  std::size_t scratch_bytes() const;
  Queue queue() const { return {device_, stream_}; }
  void while_waiting(std::function<void(double)> turn) { while_waiting_ = std::move(turn); }

 protected:
  void enqueue(const ops::Draw&) override;
  void enqueue(const ops::Embed&) override;
  void enqueue(const ops::GatherRows&) override;
  void enqueue(const ops::AddRmsNorm&) override;
  void enqueue(const ops::Linear&) override;
  void enqueue(const ops::RotaryAngles&) override;
  void enqueue(const ops::RotaryAppend&) override;
  void enqueue(const ops::PagedAttention&) override;
  void enqueue(const ops::CopyBlocks&) override;
  void enqueue(const ops::Route&) override;
  void enqueue(const ops::ExpertMlp&) override;
  void enqueue(const ops::Sample&) override;
  void enqueue(const ops::MoeBlock&) override;

 private:
  // Before each op: that its memory is on this device, which the thread's calls then go to.
  void begin(const View& output);

  // The tile of a product by the table in use, or by the plan.
  int tile(const ops::Product&, std::int64_t tokens) const;

  // A copy of a host matrix on the device, its rows aligned for the kernels.
  View placed(const View& host);

  struct E4m3Memory {
    Workspace data, scale;
  };
  // Room for `rows` rows of k columns, with one scale a row or one for each of `groups`.
  static E4m3Rows e4m3_rows(E4m3Memory&, std::int64_t rows, std::int64_t k, std::int64_t groups);
  // Of what a feed-forward's down projection takes, as the dtype of x, or as e4m3.
  View hidden_rows(DType, std::int64_t rows, std::int64_t inter);
  E4m3Rows hidden_e4m3_rows(std::int64_t rows, std::int64_t inter);
  // x rounded with one scale a row; valid until the next call. Nothing to do if the norm that wrote
  // x has rounded it.
  E4m3Rows quantised(const View& x);
  // x rounded with one scale a row, in the order of products with int4 weights; valid until the
  // next call with this memory. Forgets what a norm has rounded.
  E4m3Rows in_int4_order(E4m3Memory&, const View& x);
  // Where this norm is to round its output, which rounded_ then stands for; null if nowhere.
  const E4m3Rows* rounded_by(const ops::AddRmsNorm&);
  // The rows of x that the slots of experts multiply, in their order, for the copy engine, and
  // behind them their scales; in `memory`.
  E4m3Rows quantised_slots(const ops::ExpertMlp&, const ExpertGroups&, void* memory);
  View slot_rows(const ops::ExpertMlp&, const ExpertGroups&, void* memory);
  // The rows of x that the slots multiply: where they are, or those of one of the two above, in
  // `spread`.
  void set_slots_input(GemmArgs&, const ops::ExpertMlp&, const ExpertGroups&, void* spread);

  // By the kernel that plan_attention() chooses.
  void attend(const ops::PagedAttention&);

  void dense_mlp(const ops::ExpertMlp&);
  // Enqueues what fills the groups, whose products have tiles of so many tokens.
  using GroupChoices = std::function<void(int token_tile, const ExpertGroups&)>;
  // The routed experts of a step that has choices, all but their weighted sum; valid until the next
  // call.
  ExpertSums routed_sums(const ops::ExpertMlp&, const GroupChoices& group);

  int device_;
  std::string name_;
  int processors_ = 0;
  ops::Tactics tactics_;
  Stream stream_;
  std::function<void(double seconds)> while_waiting_;
  Staging staging_;
  std::vector<Buffer> weights_;
  std::int64_t moves_ = 0;  // of any workspace
  Workspace attention_parts_{moves_}, expert_index_{moves_}, expert_hidden_{moves_},
      expert_out_{moves_};
  E4m3Memory x_e4m3_{Workspace(moves_), Workspace(moves_)};
  // What x_e4m3_ holds of a norm's output, until something else is written there or to `from`.
  struct Rounded {
    View from;
    E4m3Rows rows{};
  } rounded_;
  Buffer finished_;  // of norm_route(): one counter
  E4m3Memory hidden_e4m3_{Workspace(moves_), Workspace(moves_)};
};

}  // namespace ostro::cuda
