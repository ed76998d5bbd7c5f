#include "builder/dummy_source.h"

#include <algorithm>

#include "builder/dummy.h"

namespace ostro::builder {
namespace {

constexpr std::int64_t kRowAlign = 16;  // bytes: what kernels load at once

}  // namespace

quant::Weight DummySource::ones(const model::TensorSlice& slice, ops::Backend& backend,
                                std::vector<Buffer>& owned) const {
  const std::int64_t cols = slice.col_range.size();
  const std::vector<float> values(std::size_t(cols), 1.0f);
  Buffer host = allocate_host(values.size() * size_of(dtype_));
  convert(values.data(), DType::f32, host.data(), dtype_, values.size());
  const quant::Weight placed = backend.place({.data = host.view(dtype_, 1, cols), .scale = {}});
  if (placed.data.data == host.data()) owned.push_back(std::move(host));
  return placed;
}

View DummySource::quantiles(DType dtype, ops::Backend& backend) {
  Buffer& buffer = quantiles_[dtype];
  if (!buffer.data()) {
    std::vector<std::byte> values = dummy_quantiles(dtype);
    buffer = backend.allocate(values.size());
    backend.copy(matrix(values.data(), dtype, 1, ops::kQuantiles),
                 buffer.view(dtype, 1, ops::kQuantiles));
    backend.wait();
  }
  return buffer.view(dtype, 1, ops::kQuantiles);
}

quant::Weight DummySource::load(std::span<const model::TensorSlice> stacked, ops::Backend& backend,
                                std::vector<Buffer>& owned) {
  if (stacked.front().name.ends_with("norm")) return ones(stacked.front(), backend, owned);
  const DType dtype = stacked.front().dtype;
  const View values = quantiles(dtype, backend);
  std::int64_t rows = 0;
  for (const model::TensorSlice& s : stacked) rows += s.row_range.size();
  const std::int64_t cols = stacked.front().col_range.size();
  const auto size = std::int64_t(size_of(dtype));
  const std::int64_t stride = round_up(cols * size, kRowAlign) / size;
  owned.push_back(backend.allocate(std::size_t(rows * stride * size)));
  View whole = owned.back().view(dtype, rows, stride);
  whole.cols = cols;
  std::int64_t row = 0;
  for (const model::TensorSlice& s : stacked) {
    backend.run(ops::Draw{.quantiles = values,
                          .y = whole.rows_of({row, row + s.row_range.size()}),
                          .key = ops::draw_key(seed_, s.name),
                          .first_row = s.row_range.begin,
                          .first_col = s.col_range.begin,
                          .matrix_cols = s.cols});
    row += s.row_range.size();
  }
  if (!model::is_quantised(stacked.front())) return backend.place({.data = whole, .scale = {}});

  model::TensorSlice scales = model::scale_of(stacked.front());
  scales.row_range = {0, rows};
  std::vector<std::byte> bytes = dummy_scales(scales, dtype);
  const bool groups = dtype == DType::u8;
  const View host = matrix(bytes.data(), scales.dtype, groups ? rows : 1,
                           groups ? scales.col_range.size() : rows);
  owned.push_back(backend.allocate(bytes.size()));
  const View scale = owned.back().view(host.dtype, host.rows, host.cols);
  backend.copy(host, scale);
  backend.wait();
  return backend.place({.data = whole, .scale = scale});
}

}  // namespace ostro::builder
