// The CUDA backend's state; backend.cc, products.cc and attention.cc hold its parts.
#pragma once

#include <vector>

#include "backends/cuda/memory.h"
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
  Device device() const override { return Device::cuda; }
  std::string description() const override;
  std::size_t free_memory_bytes() const override;

 protected:
  void enqueue(const ops::Draw&) override;
  void enqueue(const ops::Embed&) override;
  void enqueue(const ops::GatherRows&) override;
  void enqueue(const ops::AddRmsNorm&) override;
  void enqueue(const ops::Linear&) override;
  void enqueue(const ops::RotaryAngles&) override;
  void enqueue(const ops::RotaryAppend&) override;
  void enqueue(const ops::PagedAttention&) override;
  void enqueue(const ops::Route&) override;
  void enqueue(const ops::ExpertMlp&) override;

 private:
  // Before each op: that its memory is on this device, which the thread's calls then go to.
  void begin(const View& output) const;

  void dense_mlp(const ops::ExpertMlp&);
  void routed_mlp(const ops::ExpertMlp&);

  int device_;
  std::string name_;
  int processors_ = 0;
  Stream stream_;
  Staging staging_;
  std::vector<Buffer> weights_;
  Workspace attention_parts_, expert_index_, expert_hidden_, expert_out_;
};

}  // namespace ostro::cuda
