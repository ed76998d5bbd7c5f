// ExpertMlp: tokens sorted by expert, then three parallel regions: gate, up and SiLU of (expert x
// rows x block of inter); down of (expert x rows x block of hidden); the weighted sum of each
// token.
#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "quant/e4m3.h"

namespace ostro::cpu {

// A slot is one (token, expert) pair whose expert is local; slots are sorted by expert, then token.
struct CpuBackend::ExpertPlan {
  std::int64_t experts = 0, slots = 0;
  std::int32_t* start = nullptr;       // [experts + 1] first slot
  std::int32_t* first_item = nullptr;  // [experts + 1] first work item of the stage
  std::int32_t* token = nullptr;       // [slots]
  std::int32_t* slot_of = nullptr;     // [tokens, top_k], -1: not local

  // One stage multiplies each expert's rows by [n, k] weights in blocks of `columns`.
  struct Block {
    std::int64_t expert;
    Range rows, columns;
  };
  std::int64_t n = 0;
  std::int64_t columns_of(std::int64_t rows) const { return rows > kGemmStagedRows ? many : few; }
  std::int64_t few = 0, many = 0;

  // Of at most `most` columns where there are many rows.
  std::int64_t plan(std::int64_t n_, std::int64_t k, double weight_size, std::int64_t most,
                    const CpuBackend& backend) {
    n = n_;
    const Kernels& kernels = backend.kernels_;
    const int threads = backend.threads_.count();
    std::int64_t active = 0, largest = 1, row_blocks = 0;
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t rows = start[e + 1] - start[e];
      active += rows > 0;
      if (rows <= kGemmStagedRows) largest = std::max(largest, rows);
      row_blocks += backend.row_blocks_of(rows);
    }
    const int share =
        std::max<int>(1, int(ceil_div<std::int64_t>(threads, std::max<std::int64_t>(1, active))));
    few = gemm_columns(kernels, largest, n, k, weight_size, active, share, most);
    many = gemm_columns(kernels, kGemmStagedRows + 1, n, k, weight_size, row_blocks, threads, most);
    std::int64_t items = 0;
    for (std::int64_t e = 0; e < experts; ++e) {
      first_item[e] = std::int32_t(items);
      const std::int64_t rows = start[e + 1] - start[e];
      if (rows > 0) items += backend.row_blocks_of(rows) * ceil_div(n, columns_of(rows));
    }
    first_item[experts] = std::int32_t(items);
    return items;
  }

  Block block(std::int64_t item, const CpuBackend& backend) const {
    const std::int64_t e =
        std::upper_bound(first_item, first_item + experts + 1, std::int32_t(item)) - first_item - 1;
    const std::int64_t rows = start[e + 1] - start[e];
    const std::int64_t row_blocks = backend.row_blocks_of(rows), columns = columns_of(rows);
    const std::int64_t i = item - first_item[e];
    const BlockIndex index = backend.block_of(i, row_blocks, ceil_div(n, columns));
    const Range part = backend.rows_of(rows, index.row_block, row_blocks);
    const std::int64_t n0 = index.column_block * columns;
    return {e, {start[e] + part.begin, start[e] + part.end}, {n0, std::min(n, n0 + columns)}};
  }

  // Where packed rows lie: those of each expert start at a multiple of the unit.
  std::int64_t unit = 1;
  std::int32_t* first_unit = nullptr;  // [experts + 1]
  void plan_units(std::int64_t unit_) {
    unit = unit_;
    first_unit[0] = 0;
    for (std::int64_t e = 0; e < experts; ++e)
      first_unit[e + 1] =
          first_unit[e] + std::int32_t(ceil_div<std::int64_t>(start[e + 1] - start[e], unit));
  }
  Range slots_of_unit(std::int64_t i) const {
    const std::int64_t e =
        std::upper_bound(first_unit, first_unit + experts + 1, std::int32_t(i)) - first_unit - 1;
    const std::int64_t begin = start[e] + (i - first_unit[e]) * unit;
    return {begin, std::min<std::int64_t>(start[e + 1], begin + unit)};
  }
  std::int64_t packed_row(const Block& b) const {
    return first_unit[b.expert] * unit + b.rows.begin - start[b.expert];
  }
};

void CpuBackend::enqueue(const ops::ExpertMlp& op) {
  check_here(op.y);
  const std::int64_t tokens = op.x.rows, hidden = op.x.cols;
  if (tokens == 0) return;
  if (op.local.empty()) {
    for (std::int64_t t = 0; t < tokens; ++t)
      std::memset(row_of(op.y, t), 0, std::size_t(hidden) * sizeof(float));
    return;
  }
  const std::int64_t top_k = op.experts ? op.experts.cols : 1;
  const ops::Expert& any = op.local.front();
  const std::int64_t inter = any.gate.n();

  ExpertPlan plan;
  plan.experts = std::int64_t(op.local.size());
  plan.start = expert_index_.reserve<std::int32_t>(3 * (plan.experts + 1) + 2 * tokens * top_k);
  plan.first_item = plan.start + plan.experts + 1;
  plan.first_unit = plan.first_item + plan.experts + 1;
  plan.token = plan.first_unit + plan.experts + 1;
  plan.slot_of = plan.token + tokens * top_k;
  const auto local_expert = [&](std::int64_t t, std::int64_t j) {
    const std::int64_t e = op.experts ? ints(op.experts, t)[j] - op.first_expert : 0;
    return 0 <= e && e < plan.experts ? e : -1;
  };
  std::fill_n(plan.start, plan.experts + 1, 0);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < top_k; ++j)
      if (const std::int64_t e = local_expert(t, j); e >= 0) ++plan.start[e + 1];
  for (std::int64_t e = 0; e < plan.experts; ++e) plan.start[e + 1] += plan.start[e];
  plan.slots = plan.start[plan.experts];
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < top_k; ++j) {
      const std::int64_t e = local_expert(t, j);
      std::int32_t& slot = plan.slot_of[t * top_k + j];
      slot = e < 0 ? -1 : plan.start[e]++;
      if (e >= 0) plan.token[slot] = std::int32_t(t);
    }
  for (std::int64_t e = plan.experts; e > 0; --e) plan.start[e] = plan.start[e - 1];
  plan.start[0] = 0;

  // Sized by the tokens, not by how many slots are local: a step like it must not allocate.
  const bool e4m3 = op.activations == ops::Activations::e4m3_per_token;
  const View x = rounded(op.x, op.activations);
  const std::int64_t x_size = std::int64_t(size_of(x.dtype));
  char* const h = expert_hidden_.reserve<char>(tokens * top_k * inter * x_size);
  float* const out = op.experts ? expert_out_.reserve<float>(tokens * top_k * hidden)
                                : static_cast<float*>(op.y.data);
  const std::int64_t out_stride = op.experts ? hidden : op.y.row_stride;
  const double size = weight_size(any.gate);
  const double read_size = size * double(std::min(plan.slots, plan.experts));

  Gemm common{};
  common.x_type = element(x.dtype);
  // Rows of one expert in one stage: their first slot tells them apart.
  const std::int64_t up_key = pack_keys(2 * plan.slots), down_key = up_key + plan.slots;
  const GemmScratch scratch =
      gemm_scratch(std::min(tokens * top_k, kernels_.item_tokens), std::max(hidden, inter));
  const bool pack = tokens * top_k > kGemmStagedRows &&
                    kernels_.packs(common.x_type, element(any.gate.data.dtype));
  if (pack) plan.plan_units(kernels_.token_unit);
  // Row `rows[slot]` or `slot` of `from`, packed by all threads.
  const auto packed = [&](const void* from, const std::int32_t* rows, std::int64_t stride,
                          std::int64_t k) -> const char* {
    if (!pack) return nullptr;
    const std::int64_t unit_bytes = kernels_.packed_bytes(plan.unit, k);
    const std::int64_t most_units = ceil_div(tokens * top_k, plan.unit) + plan.experts;
    char* const to = packed_.reserve<char>(most_units * unit_bytes);
    items(plan.first_unit[plan.experts], double(plan.slots * k) * 0.1, [&](int, std::int64_t unit) {
      const Range slots = plan.slots_of_unit(unit);
      kernels_.pack_rows(
          {.x = rows ? from : static_cast<const char*>(from) + slots.begin * stride * x_size,
           .rows = rows ? rows + slots.begin : nullptr,
           .to = to + unit * unit_bytes,
           .x_stride = stride,
           .m = slots.size(),
           .k = k});
    });
    return to;
  };

  // What this thread may take after `columns`; the others take the blocks between.
  const auto next_rows = [&](const quant::Weight& w, Range columns) -> const void* {
    const std::int64_t next = columns.begin + columns.size() * threads_.count();
    return next < w.n() ? weight_row(w, next) : nullptr;
  };

  const char* const x_packed = packed(x.data, plan.token, x.row_stride, hidden);
  // Two sums: half as many columns of each, where a work item fills the L2.
  const std::int64_t up_columns = kernels_.item_columns / (kernels_.pack_rows ? 2 : 1);
  const std::int64_t up_items = plan.plan(inter, hidden, size, up_columns, *this);
  items(up_items, gemm_ns(plan.slots, 2 * inter, hidden, read_size),
        [&](int thread, std::int64_t item) {
          const ExpertPlan::Block b = plan.block(item, *this);
          const ops::Expert& expert = op.local[std::size_t(b.expert)];
          Gemm gemm = common;
          gemm.x = x.data;
          gemm.rows = plan.token + b.rows.begin;
          gemm.x_stride = x.row_stride;
          gemm.m = b.rows.size();
          gemm.n = b.columns.size();
          gemm.k = hidden;
          gemm.pack_key = up_key + b.rows.begin;
          if (x_packed) gemm.packed = x_packed + kernels_.packed_bytes(plan.packed_row(b), hidden);
          gemm.sum_stride = b.columns.size();
          gemm.scratch = scratch.of(thread);
          set_weight(gemm, expert.gate, b.columns.begin);
          gemm.sum = sums(thread, 0);
          gemm.next_w = weight_row(expert.up, b.columns.begin);
          kernels_.gemm(gemm);
          set_weight(gemm, expert.up, b.columns.begin);
          gemm.sum = sums(thread, 1);
          gemm.next_w = next_rows(expert.gate, b.columns);
          kernels_.gemm(gemm);
          kernels_.swiglu({.gate = sums(thread, 0),
                           .up = sums(thread, 1),
                           .gate_scale = scale_of(expert.gate, b.columns.begin),
                           .up_scale = scale_of(expert.up, b.columns.begin),
                           .h = h + (b.rows.begin * inter + b.columns.begin) * x_size,
                           .stride = gemm.sum_stride,
                           .h_stride = inter,
                           .m = gemm.m,
                           .n = gemm.n,
                           .type = element(x.dtype)});
        });
  if (e4m3)
    over(plan.slots, double(inter), [&](int, Range part) {
      for (std::int64_t slot = part.begin; slot < part.end; ++slot) {
        float* const row = reinterpret_cast<float*>(h) + slot * inter;
        kernels_.round_e4m3({.from = row,
                             .to = row,
                             .n = inter,
                             .group = ops::hidden_group(op),
                             .type = Element::f32});
      }
    });

  const char* const h_packed = packed(h, nullptr, inter, inter);
  const std::int64_t down_items = plan.plan(hidden, inter, size, kernels_.item_columns, *this);
  items(down_items, gemm_ns(plan.slots, hidden, inter, read_size),
        [&](int thread, std::int64_t item) {
          const ExpertPlan::Block b = plan.block(item, *this);
          const quant::Weight& down = op.local[std::size_t(b.expert)].down;
          Gemm gemm = common;
          gemm.x = h + b.rows.begin * inter * x_size;
          gemm.x_stride = inter;
          set_weight(gemm, down, b.columns.begin);
          gemm.sum = out + b.rows.begin * out_stride + b.columns.begin;
          gemm.sum_stride = out_stride;
          gemm.m = b.rows.size();
          gemm.n = b.columns.size();
          gemm.k = inter;
          gemm.next_w = next_rows(down, b.columns);
          gemm.pack_key = down_key + b.rows.begin;
          if (h_packed) gemm.packed = h_packed + kernels_.packed_bytes(plan.packed_row(b), inter);
          gemm.scratch = scratch.of(thread);
          kernels_.gemm(gemm);
          if (scale_of(down, b.columns.begin))
            kernels_.store_rows({.from = gemm.sum,
                                 .to = gemm.sum,
                                 .from_stride = gemm.sum_stride,
                                 .to_stride = gemm.sum_stride,
                                 .m = gemm.m,
                                 .n = gemm.n,
                                 .type = Element::f32,
                                 .scale = scale_of(down, b.columns.begin)});
        });

  if (!op.experts) return;
  over(tokens, double(hidden * top_k) * 0.1, [&](int, Range part) {
    for (std::int64_t t = part.begin; t < part.end; ++t)
      kernels_.combine({.from = out,
                        .slots = plan.slot_of + t * top_k,
                        .weights = reinterpret_cast<const float*>(row_of(op.weights, t)),
                        .y = reinterpret_cast<float*>(row_of(op.y, t)),
                        .from_stride = hidden,
                        .top_k = top_k,
                        .n = hidden});
  });
}

}  // namespace ostro::cpu
