// The backend's class, private to this folder: backend.cc has the small operations, linear.cc,
// moe.cc and attention.cc those that are planned.
#pragma once

#include <algorithm>

#include "backends/cpu/backend.h"
#include "backends/cpu/huge_pages.h"
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/threads.h"

namespace ostro::cpu {

// Nanoseconds of a product on one thread, about: only to decide whether to share it.
double gemm_ns(std::int64_t m, std::int64_t n, std::int64_t k, double weight_size);
// Columns of a work item of a product: enough items for the threads, at most `most` if there are
// many tokens, sums that fit item_tokens x item_columns.
std::int64_t gemm_columns(const Kernels& kernels, std::int64_t m, std::int64_t n, std::int64_t k,
                          double weight_size, std::int64_t row_blocks, int threads,
                          std::int64_t most);

inline Element element(DType dtype) {
  return dtype == DType::f32    ? Element::f32
         : dtype == DType::f16  ? Element::f16
         : dtype == DType::bf16 ? Element::bf16
         : dtype == DType::i8   ? Element::int8
         : dtype == DType::u8   ? Element::int4
                                : Element::e4m3;
}
// Bytes of one weight.
inline double weight_size(const quant::Weight& w) {
  return double(size_of(w.data.dtype)) / (w.is_int4() ? 2 : 1);
}
// Row r of a view, whatever its type.
inline char* row_of(const View& v, std::int64_t r) {
  return v ? static_cast<char*>(v.data) + r * v.row_stride * std::int64_t(size_of(v.dtype))
           : nullptr;
}
inline const std::int32_t* ints(const View& v, std::int64_t r = 0) {
  return static_cast<const std::int32_t*>(v.data) + r * v.row_stride;
}

// Memory that grows when a larger step than ever arrives, and never shrinks. Uninitialised.
class Workspace {
 public:
  template <class T>
  T* reserve(std::int64_t elements) {
    return static_cast<T*>(reserve_bytes(std::size_t(elements) * sizeof(T)));
  }

 private:
  void* reserve_bytes(std::size_t bytes);
  Buffer buffer_;
};

class CpuBackend final : public ops::Backend {
 public:
  explicit CpuBackend(const Options& options);

  Buffer allocate(std::size_t bytes) override;
  quant::Weight place(const quant::Weight& host) override;
  void copy(const View& from, const View& to) override;
  void wait() override {}
  ops::Activations e4m3_activations() const override { return e4m3_activations_; }
  Device device() const override { return Device::cpu; }
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
  void enqueue(const ops::CopyBlocks&) override;
  void enqueue(const ops::Route&) override;
  void enqueue(const ops::ExpertMlp&) override;
  void enqueue(const ops::Sample&) override;

 private:
  struct ExpertPlan;

  // fn(thread, range) for parts of [0, n) that cost about ns_each nanoseconds an element: on this
  // thread alone if waking others would take longer.
  template <class Fn>
  void over(std::int64_t n, double ns_each, Fn&& fn) {
    if (threads_.count() == 1 || double(n) * ns_each < kAloneNs || n <= 1) {
      if (n > 0) fn(0, Range{0, n});
      return;
    }
    const std::int64_t parts = std::min<std::int64_t>(n, threads_.count());
    threads_.for_each(parts,
                      [&](int thread, std::int64_t part) { fn(thread, part_of(n, part, parts)); });
  }
  // for_each, or a loop on this thread for work of less than kAloneNs in all.
  template <class Fn>
  void items(std::int64_t n, double ns, Fn&& fn) {
    if (ns < kAloneNs) {
      for (std::int64_t i = 0; i < n; ++i) fn(0, i);
    } else {
      threads_.for_each(n, fn);
    }
  }
  // Two hot threads meet within a microsecond or two; below this, meeting gains little.
  static constexpr double kAloneNs = 5000;

  // The blocks of a product in the order of its items. All row blocks of one block of columns in
  // turn: its weights come from memory once. Or the reverse, where kernels pack x.
  struct BlockIndex {
    std::int64_t row_block, column_block;
  };
  BlockIndex block_of(std::int64_t item, std::int64_t row_blocks,
                      std::int64_t column_blocks) const {
    if (kernels_.pack_rows) return {item / column_blocks, item % column_blocks};
    return {item % row_blocks, item / row_blocks};
  }
  std::int64_t row_blocks_of(std::int64_t rows) const {
    return ceil_div(rows, kernels_.item_tokens);
  }
  Range rows_of(std::int64_t rows, std::int64_t row_block, std::int64_t row_blocks) const {
    const std::int64_t unit = kernels_.token_unit;
    const Range units = part_of(ceil_div(rows, unit), row_block, row_blocks);
    return {units.begin * unit, std::min(rows, units.end * unit)};
  }
  // For every thread, room for products of up to m rows of k.
  struct GemmScratch {
    char* base;
    std::int64_t stride;
    char* of(int thread) const { return base + thread * stride; }
  };
  GemmScratch gemm_scratch(std::int64_t m, std::int64_t k) {
    const std::int64_t bytes = round_up<std::int64_t>(kernels_.gemm_scratch_bytes(m, k), 4096);
    return {gemm_scratch_.reserve<char>(threads_.count() * bytes), bytes};
  }
  // A key that no product had before: `count` of them from the first.
  std::int64_t pack_keys(std::int64_t count) {
    next_pack_key_ += count;
    return next_pack_key_ - count;
  }

  // Sums of one work item, for each thread; two of them for SwiGLU.
  float* sums(int thread, int which = 0) { return sums_ + (2 * thread + which) * sum_floats(); }
  std::int64_t sum_floats() const { return kernels_.item_tokens * kernels_.item_columns; }

  void check_here(const View& v) const;

  // x, or its rows rounded as `activations` says, in f32.
  View rounded(const View& x, ops::Activations activations);

  // x packed by all threads for a product with w; null if gemm takes it as it is.
  const char* packed(const View& x, const quant::Weight& w);

  // The scales of a weight's rows from r on; null if rows have none.
  static const float* scale_of(const quant::Weight& w, std::int64_t r) {
    return w.scale && !w.is_int4() ? static_cast<const float*>(w.scale.data) + r : nullptr;
  }
  // Row r of a weight, where it is best read now.
  const void* weight_row(const quant::Weight& w, std::int64_t r) const {
    return huge_pages_.find(row_of(w.data, r));
  }
  // The rows of `w` from r on are those that the product multiplies by.
  void set_weight(Gemm& gemm, const quant::Weight& w, std::int64_t r) const {
    gemm.w = weight_row(w, r);
    gemm.w_stride = w.data.row_stride;
    gemm.w_type = element(w.data.dtype);
    gemm.w_scale = w.is_int4() ? row_of(w.scale, r) : nullptr;
    gemm.w_scale_stride = w.scale.row_stride;
  }

  const Kernels& kernels_;
  Threads threads_;
  bool huge_pages_wanted_;
  ops::Activations e4m3_activations_;
  HugePages huge_pages_;
  Buffer sums_buffer_;
  float* sums_ = nullptr;
  std::int64_t next_pack_key_ = 1;
  Workspace gemm_scratch_, packed_, rounded_;
  Workspace attention_scratch_, attention_partial_, attention_items_;
  Workspace expert_index_, expert_hidden_, expert_out_;
  Workspace logits_;
  std::vector<ops::HostSampler> samplers_;  // of each thread
};

}  // namespace ostro::cpu
