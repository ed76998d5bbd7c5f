// Linear and Route: which thread multiplies which block.
#include <algorithm>

#include "backends/cpu/cpu_backend.h"

namespace ostro::cpu {
namespace {

// Weights that a thread takes at a time when few tokens stream through them: the first kilobytes of
// a stream come slowly (22 GB/s at 128 KiB where 30 are possible).
constexpr std::int64_t kChunkBytes = 512 << 10;
constexpr std::int64_t kChunks = 4;  // for each thread, at least

}  // namespace

double gemm_ns(std::int64_t m, std::int64_t n, std::int64_t k, double weight_size) {
  return double(n) * double(k) * (weight_size / 20 + double(m) / 60);
}

std::int64_t gemm_columns(const Kernels& kernels, std::int64_t m, std::int64_t n, std::int64_t k,
                          double weight_size, std::int64_t row_blocks, int threads,
                          std::int64_t most) {
  const std::int64_t unit = kernels.column_unit;
  if (m > kGemmStagedRows) {
    std::int64_t columns = most;
    while (columns > 32 && row_blocks * ceil_div(n, columns) < 3 * threads) columns /= 2;
    return columns;
  }
  const auto row_bytes = std::max<std::int64_t>(1, std::int64_t(double(k) * weight_size));
  std::int64_t columns = std::max(unit, kChunkBytes / row_bytes);
  columns = std::min(columns, ceil_div(n, kChunks * threads));
  columns = std::min(columns, kernels.item_tokens * kernels.item_columns / m);
  return std::max(unit, columns / unit * unit);
}

View CpuBackend::rounded(const View& x, ops::Activations activations) {
  if (activations == ops::Activations::as_is) return x;
  const View to = matrix(rounded_.reserve<float>(x.rows * x.cols), DType::f32, x.rows, x.cols);
  over(x.rows, double(x.cols), [&](int, Range part) {
    for (std::int64_t t = part.begin; t < part.end; ++t)
      kernels_.round_e4m3({.from = row_of(x, t),
                           .to = to.row<float>(t),
                           .n = x.cols,
                           .group = x.cols,
                           .type = element(x.dtype)});
  });
  return to;
}

const char* CpuBackend::packed(const View& x, const quant::Weight& w) {
  if (x.rows <= kGemmStagedRows || !kernels_.packs(element(x.dtype), element(w.data.dtype)))
    return nullptr;
  const std::int64_t unit = kernels_.token_unit;
  const std::int64_t unit_bytes = kernels_.packed_bytes(unit, x.cols);
  const std::int64_t units = ceil_div(x.rows, unit);
  char* const to = packed_.reserve<char>(units * unit_bytes);
  over(units, double(unit * x.cols) * 0.1, [&](int, Range part) {
    const std::int64_t begin = part.begin * unit;
    kernels_.pack_rows({.x = row_of(x, begin),
                        .rows = nullptr,
                        .to = to + part.begin * unit_bytes,
                        .x_stride = x.row_stride,
                        .m = std::min(x.rows, part.end * unit) - begin,
                        .k = x.cols});
  });
  return to;
}

void CpuBackend::enqueue(const ops::Linear& op) {
  check_here(op.y);
  const View x = rounded(op.x, op.activations);
  const std::int64_t m = op.x.rows, n = op.w.n(), k = op.w.k();
  if (m == 0 || n == 0) return;
  const std::int64_t row_blocks = row_blocks_of(m);
  const std::int64_t columns = gemm_columns(kernels_, m, n, k, weight_size(op.w), row_blocks,
                                            threads_.count(), kernels_.item_columns);
  const std::int64_t column_blocks = ceil_div(n, columns);
  const bool direct = op.y.dtype == DType::f32;
  const GemmScratch scratch = gemm_scratch(std::min(m, kernels_.item_tokens), k);
  const char* const x_packed = packed(x, op.w);
  const std::int64_t key = pack_keys(row_blocks);
  items(row_blocks * column_blocks, gemm_ns(m, n, k, weight_size(op.w)),
        [&](int thread, std::int64_t item) {
          const auto [row_block, column_block] = block_of(item, row_blocks, column_blocks);
          const Range rows = rows_of(m, row_block, row_blocks);
          const std::int64_t n0 = column_block * columns;
          const std::int64_t width = std::min(columns, n - n0);
          char* y = row_of(op.y, rows.begin) + n0 * std::int64_t(size_of(op.y.dtype));
          Gemm gemm{};
          gemm.x = row_of(x, rows.begin);
          set_weight(gemm, op.w, n0);
          gemm.sum = direct ? reinterpret_cast<float*>(y) : sums(thread);
          gemm.x_stride = x.row_stride;
          gemm.sum_stride = direct ? op.y.row_stride : width;
          gemm.m = rows.size();
          gemm.n = width;
          gemm.k = k;
          gemm.x_type = element(x.dtype);
          // What this thread may take next; the others take the items between.
          const std::int64_t next =
              block_of(item + threads_.count(), row_blocks, column_blocks).column_block * columns;
          if (next > n0 && next < n) gemm.next_w = weight_row(op.w, next);
          gemm.scratch = scratch.of(thread);
          gemm.pack_key = key + row_block;
          if (x_packed) gemm.packed = x_packed + kernels_.packed_bytes(rows.begin, k);
          kernels_.gemm(gemm);
          if (!direct || scale_of(op.w, n0))
            kernels_.store_rows({.from = gemm.sum,
                                 .to = y,
                                 .from_stride = gemm.sum_stride,
                                 .to_stride = op.y.row_stride,
                                 .m = gemm.m,
                                 .n = width,
                                 .type = element(op.y.dtype),
                                 .scale = scale_of(op.w, n0)});
        });
}

void CpuBackend::enqueue(const ops::Route& op) {
  check_here(op.weights);
  const std::int64_t tokens = op.x.rows, experts = op.router.n(), k = op.router.k();
  if (tokens == 0) return;
  const std::int64_t live = op.live ? ints(op.live)[0] : tokens;
  const std::int64_t blocks =
      std::max(ceil_div(tokens, kGemmStagedRows), std::min<std::int64_t>(tokens, threads_.count()));
  float* const logits = logits_.reserve<float>(threads_.count() * kGemmStagedRows * experts);
  const GemmScratch scratch = gemm_scratch(ceil_div(tokens, blocks), k);
  items(blocks, gemm_ns(tokens, experts, k, weight_size(op.router)),
        [&](int thread, std::int64_t item) {
          const Range rows = part_of(tokens, item, blocks);
          Gemm gemm{};
          gemm.x = row_of(op.x, rows.begin);
          set_weight(gemm, op.router, 0);
          gemm.sum = logits + thread * kGemmStagedRows * experts;
          gemm.x_stride = op.x.row_stride;
          gemm.sum_stride = experts;
          gemm.m = rows.size();
          gemm.n = experts;
          gemm.k = k;
          gemm.x_type = element(op.x.dtype);
          gemm.scratch = scratch.of(thread);
          kernels_.gemm(gemm);
          for (std::int64_t t = rows.begin; t < rows.end; ++t) {
            if (t >= live) {
              std::fill_n(op.experts.row<std::int32_t>(t), op.experts.cols, -1);
              std::fill_n(op.weights.row<float>(t), op.experts.cols, 0.0f);
              continue;
            }
            kernels_.route({.logits = gemm.sum + (t - rows.begin) * experts,
                            .experts = reinterpret_cast<std::int32_t*>(row_of(op.experts, t)),
                            .weights = reinterpret_cast<float*>(row_of(op.weights, t)),
                            .count = experts,
                            .top_k = op.experts.cols,
                            .renormalize = op.renormalize});
          }
        });
  if (!op.counts) return;
  auto* const counts = static_cast<std::uint32_t*>(op.counts.data);
  for (std::int64_t t = 0; t < std::min(live, tokens); ++t)
    for (std::int64_t j = 0; j < op.experts.cols; ++j) ++counts[ints(op.experts, t)[j]];
}

}  // namespace ostro::cpu
