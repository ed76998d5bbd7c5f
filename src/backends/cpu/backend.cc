#include "backends/cpu/backend.h"

#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/memory_info.h"

namespace ostro::cpu {
namespace {

// Nanoseconds an element of row-by-row work, about, from L2; only to decide whether to share it.
constexpr double kRowNs = 0.1;
constexpr double kAngleNs = 25;
constexpr double kDrawNs = 1;
constexpr double kSampleNs = 0.3;

}  // namespace

void* Workspace::reserve_bytes(std::size_t bytes) {
  if (bytes > buffer_.bytes()) {
    buffer_ = {};  // before the new one is made: both might not fit
    buffer_ = allocate_host(bytes + bytes / 4);
  }
  return buffer_.data();
}

CpuBackend::CpuBackend(const Options& options)
    : kernels_(choose_kernels(options.isa)),
      threads_(options.threads == 0 ? available_processors() : options.threads),
      huge_pages_wanted_(options.huge_pages),
      e4m3_activations_(options.emulate_e4m3_activations ? ops::Activations::e4m3_per_token
                                                         : ops::Activations::as_is) {
  sums_buffer_ =
      allocate_host(std::size_t(threads_.count()) * 2 * std::size_t(sum_floats()) * sizeof(float));
  sums_ = static_cast<float*>(sums_buffer_.data());
}

Buffer CpuBackend::allocate(std::size_t bytes) { return allocate_host(bytes); }

quant::Weight CpuBackend::place(const quant::Weight& host) {
  check_here(host.data);
  const DType type = host.data.dtype;
  const bool scaled = type == DType::f8e4m3 || type == DType::i8 || type == DType::u8;
  OSTRO_SUPPORTED((is_float(type) || scaled) && scaled == bool(host.scale),
                  "CPU has kernels for f32, f16, bf16 and scaled f8e4m3, i8 and u8 (int4) weights, "
                  "not for ",
                  describe(host.data), host.scale ? " with a scale" : "");
  if (huge_pages_wanted_)
    huge_pages_.add(host.data.data, host.data.rows == 0
                                        ? 0
                                        : std::size_t((host.data.rows - 1) * host.data.row_stride +
                                                      host.data.cols) *
                                              size_of(host.data.dtype));
  return host;
}

std::string CpuBackend::description() const {
  return text("CPU ", kernels_.name, ", ", threads_.count(),
              threads_.count() == 1 ? " thread" : " threads");
}

std::size_t CpuBackend::free_memory_bytes() const { return available_memory_bytes(); }

void CpuBackend::check_here(const View& v) const {
  OSTRO_REQUIRE(v.device == Device::cpu, describe(v), " is not in host memory");
}

void CpuBackend::copy(const View& from, const View& to) {
  OSTRO_REQUIRE(same_shape(from, to) && from.dtype == to.dtype, "copy of ", describe(from), " to ",
                describe(to));
  OSTRO_REQUIRE(from.contiguous() && to.contiguous(), "copy needs contiguous matrices");
  check_here(from);
  check_here(to);
  if (from.bytes() > 0) std::memmove(to.data, from.data, from.bytes());
}

void CpuBackend::enqueue(const ops::Draw& op) {
  check_here(op.y);
  over(op.y.rows, double(op.y.cols) * kDrawNs, [&](int, Range rows) {
    for (std::int64_t r = rows.begin; r < rows.end; ++r)
      ops::draw_elements(op.quantiles.data, size_of(op.y.dtype), op.key,
                         std::uint64_t((op.first_row + r) * op.matrix_cols + op.first_col),
                         std::uint64_t(op.y.cols), row_of(op.y, r));
  });
}

void CpuBackend::enqueue(const ops::Embed& op) {
  check_here(op.y);
  const std::int32_t* ids = ints(op.ids);
  const std::int64_t hidden = op.y.cols;
  over(op.y.rows, double(hidden) * kRowNs, [&](int, Range tokens) {
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      float* y = reinterpret_cast<float*>(row_of(op.y, t));
      const std::int64_t row = ids[t] - op.first_row;
      if (0 <= row && row < op.table.rows)
        kernels_.widen(row_of(op.table, row), element(op.table.dtype), y, hidden);
      else
        std::memset(y, 0, std::size_t(hidden) * sizeof(float));
    }
  });
}

void CpuBackend::enqueue(const ops::GatherRows& op) {
  check_here(op.y);
  const std::int32_t* rows = ints(op.rows);
  for (std::int64_t i = 0; i < op.y.rows; ++i)
    OSTRO_REQUIRE(0 <= rows[i] && rows[i] < op.x.rows, "GatherRows: rows[", i, "] is ", rows[i],
                  ", x is ", describe(op.x));
  const std::size_t bytes = std::size_t(op.y.cols) * size_of(op.y.dtype);
  over(op.y.rows, double(bytes) * 0.05, [&](int, Range part) {
    for (std::int64_t i = part.begin; i < part.end; ++i)
      std::memcpy(row_of(op.y, i), row_of(op.x, rows[i]), bytes);
  });
}

void CpuBackend::enqueue(const ops::CopyBlocks& op) {
  check_here(op.kv);
  for (std::int64_t i = 0; i < op.copies.rows; ++i)
    for (int j = 0; j < 2; ++j)
      OSTRO_REQUIRE(0 <= ints(op.copies, i)[j] && ints(op.copies, i)[j] < op.blocks(),
                    "CopyBlocks: copies[", i, ',', j, "] is ", ints(op.copies, i)[j],
                    ", there are ", op.blocks(), " blocks");
  // Rows without gaps are copied as one.
  const std::int64_t rows = op.kv.contiguous() ? 1 : op.block_rows;
  const std::size_t bytes = std::size_t(op.block_rows / rows * op.kv.cols) * size_of(op.kv.dtype);
  over(op.copies.rows * op.planes, double(bytes) * double(rows) * 0.1, [&](int, Range part) {
    for (std::int64_t i = part.begin; i < part.end; ++i) {
      const std::int32_t* pair = ints(op.copies, i / op.planes);
      const std::int64_t plane = i % op.planes * op.blocks();
      for (std::int64_t r = 0; r < rows; ++r)
        std::memcpy(row_of(op.kv, (plane + pair[1]) * op.block_rows + r),
                    row_of(op.kv, (plane + pair[0]) * op.block_rows + r), bytes);
    }
  });
}

void CpuBackend::enqueue(const ops::AddRmsNorm& op) {
  check_here(op.residual);
  NormRow row{};
  row.hidden = op.residual.cols;
  row.weight = op.weight.data;
  row.weight_type = element(op.weight.dtype);
  row.y_type = element(op.y.dtype);
  row.eps = op.eps;
  over(op.residual.rows, double(row.hidden) * 2 * kRowNs, [&](int, Range tokens) {
    NormRow r = row;
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      r.x = reinterpret_cast<const float*>(row_of(op.x, t));
      r.residual = reinterpret_cast<float*>(row_of(op.residual, t));
      r.y = row_of(op.y, t);
      kernels_.add_rms_norm(r);
    }
  });
}

void CpuBackend::enqueue(const ops::RotaryAngles& op) {
  check_here(op.cos_sin);
  const std::int32_t* positions = ints(op.positions);
  const std::int32_t* tables = ints(op.table);
  const std::int64_t tokens = op.cos_sin.rows, half = op.inv_freq.cols;
  for (std::int64_t t = 0; t < tokens; ++t)
    OSTRO_REQUIRE(0 <= tables[t] && tables[t] < op.inv_freq.rows, "RotaryAngles: table[", t,
                  "] is ", tables[t], ", inv_freq is ", describe(op.inv_freq));
  over(tokens, double(half) * kAngleNs, [&](int, Range part) {
    for (std::int64_t t = part.begin; t < part.end; ++t) {
      const float* inv_freq = reinterpret_cast<const float*>(row_of(op.inv_freq, tables[t]));
      float* out = reinterpret_cast<float*>(row_of(op.cos_sin, t));
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = float(positions[t]) * inv_freq[i];
        out[i] = float(std::cos(angle));
        out[half + i] = float(std::sin(angle));
      }
    }
  });
}

void CpuBackend::enqueue(const ops::Sample& op) {
  check_here(op.logits);
  samplers_.resize(std::size_t(threads_.count()));
  over(op.settings.rows, double(op.logits.cols) * kSampleNs, [&](int thread, Range rows) {
    for (std::int64_t r = rows.begin; r < rows.end; ++r) samplers_[std::size_t(thread)].run(op, r);
  });
}

std::unique_ptr<ops::Backend> make_backend(const Options& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace ostro::cpu
