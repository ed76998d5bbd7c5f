#include "builder/slice_stream.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "quant/e4m3.h"
#include "quant/int4.h"
#include "quant/int8.h"

namespace ostro::builder {
namespace {

constexpr std::size_t kBuffer = 4 << 20;
// A copy's bytes are read, hashed and written while they are in a core's cache.
constexpr std::size_t kCopy = 512 << 10;
constexpr std::size_t kReadAhead = 16 << 20;
// Source rows that one tile of a transposition takes: 64 elements of 2 bytes are two cache lines.
constexpr std::int64_t kTile = 64;

Range intersect(const Range& a, const Range& b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

DType type_of(const SourceBlock& block) { return *checkpoint::to_dtype(block.part.info->type); }

std::string named(const SourceMatrix& source) {
  const checkpoint::Checkpoint::Part& part = source.blocks.front().part;
  return text(part.file->map.path().string(), ": tensor \"", part.info->name, '"');
}

void require_finite(const SourceMatrix& source, const float* values, std::int64_t n) {
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  OSTRO_REQUIRE(most < 0x7f800000u, named(source),
                " has values that are not finite: quantised weights cannot hold them");
}

}  // namespace

template <class Fill>
void SliceStream::by_rows(const model::TensorSlice& slice, const ByteSink& sink, Fill fill) {
  const std::size_t row_bytes = std::size_t(slice.col_range.size()) * size_of(dtype_);
  if (row_bytes == 0) return;
  const auto step = std::int64_t(std::max<std::size_t>(1, kBuffer / row_bytes));
  buffer_.resize(std::max(buffer_.size(), std::max(kBuffer, row_bytes)));
  for (std::int64_t r = slice.row_range.begin; r < slice.row_range.end; r += step) {
    const Range rows = {r, std::min(r + step, slice.row_range.end)};
    fill(rows);
    sink(std::span(buffer_).first(std::size_t(rows.size()) * row_bytes));
  }
}

void SliceStream::copy(const SourceMatrix& source, const model::TensorSlice& slice,
                       const ByteSink& sink) {
  const std::int64_t packed = slice.dtype == DType::u8 ? 2 : 1;
  OSTRO_CHECK(source.rows == slice.rows && source.cols == slice.cols * packed, slice.name, " is [",
              slice.rows, ',', slice.cols * packed, "], its source [", source.rows, ',',
              source.cols, ']');
  if (model::is_quantised(slice)) return quantise(source, slice, sink);
  dtype_ = slice.dtype;
  for (const SourceBlock& b : source.blocks) {
    const bool inside = b.rows.begin <= slice.row_range.begin && slice.row_range.end <= b.rows.end;
    if (inside && b.cols == slice.col_range && b.stride == b.cols.size() && !b.transposed &&
        source.interleaved_head_dim == 0 && type_of(b) == dtype_)
      return copy_run(b, slice, sink);
  }
  copy_rows(source, slice, sink);
}

void SliceStream::copy_rows(const SourceMatrix& source, const model::TensorSlice& slice,
                            const ByteSink& sink) {
  by_rows(slice, sink, [&](Range rows) {
    for (const SourceBlock& b : source.blocks) {
      if (b.transposed)
        transpose(b, rows, slice.col_range);
      else
        gather(source, b, rows, slice.col_range);
    }
    check_halves(source, rows.size() * slice.col_range.size());
  });
  for (const SourceBlock& b : source.blocks)
    if (b.transposed) {
      const std::size_t element = size_of(type_of(b));
      b.part.release(std::size_t(b.first) * element,
                     std::size_t(b.cols.size() * b.stride) * element);
    }
}

// The whole rows in f32, of which the slice takes its columns.
void SliceStream::quantise(const SourceMatrix& source, const model::TensorSlice& slice,
                           const ByteSink& sink) {
  model::TensorSlice whole = slice;
  whole.cols = source.cols;
  whole.col_range = {0, source.cols};
  whole.dtype = dtype_ = DType::f32;
  const std::int64_t width = slice.col_range.size();
  std::vector<std::byte>& scales = scales_[slice.name];
  scales.clear();
  copy_rows(source, whole, [&](std::span<const std::byte> bytes) {
    const auto* values = reinterpret_cast<const float*>(bytes.data());
    const std::int64_t rows = std::int64_t(bytes.size() / sizeof(float)) / source.cols;
    require_finite(source, values, rows * source.cols);
    quantised_.resize(std::size_t(rows * width));
    for (std::int64_t r = 0; r < rows; ++r)
      encode_row(std::span(values + r * source.cols, std::size_t(source.cols)), slice,
                 quantised_.data() + r * width, scales);
    sink(std::as_bytes(std::span(quantised_)));
  });
}

// The slice's columns of one whole row to `to`, its scales to the end of `scales`.
void SliceStream::encode_row(std::span<const float> row, const model::TensorSlice& slice,
                             std::uint8_t* to, std::vector<std::byte>& scales) {
  const auto keep = [&](const auto& scale) {
    const auto bytes = std::as_bytes(std::span(&scale, 1));
    scales.insert(scales.end(), bytes.begin(), bytes.end());
  };
  const auto n = std::int64_t(row.size());
  const Range cols = slice.col_range;
  if (slice.dtype == DType::u8) {
    for (std::int64_t byte = cols.begin; byte < cols.end; byte += quant::kInt4GroupBytes) {
      const float* group = row.data() + 2 * byte;
      const bf16 scale = quant::int4_scale(group);
      quant::int4_encode(group, scale, to + byte - cols.begin);
      keep(scale);
    }
  } else if (slice.dtype == DType::i8) {
    const float scale = quant::int8_scale(row.data(), n);
    quant::int8_encode(row.data() + cols.begin, cols.size(), scale,
                       reinterpret_cast<std::int8_t*>(to));
    keep(scale);
  } else {
    const float most = quant::e4m3_fitted_amax(row.data(), n);
    quant::e4m3_encode(row.data() + cols.begin, cols.size(), quant::e4m3_factor(most),
                       reinterpret_cast<f8e4m3*>(to));
    keep(quant::e4m3_scale(most));
  }
}

void SliceStream::scales(const model::TensorSlice& slice, const ByteSink& sink) {
  const std::string weight = slice.name.substr(0, slice.name.rfind('.'));
  const auto kept = scales_.extract(weight);
  OSTRO_CHECK(
      kept && kept.mapped().size() == std::size_t(slice.row_range.size() * slice.col_range.size()) *
                                          size_of(slice.dtype),
      slice.name, " comes before its weight");
  sink(kept.mapped());
}

// The slice lies in the file as it will in the engine.
void SliceStream::copy_run(const SourceBlock& block, const model::TensorSlice& slice,
                           const ByteSink& sink) {
  const std::size_t element = size_of(dtype_);
  const std::int64_t skipped = (slice.row_range.begin - block.rows.begin) * block.stride;
  const std::size_t begin = std::size_t(block.first + skipped) * element;
  const std::size_t end =
      begin + std::size_t(slice.row_range.size() * slice.col_range.size()) * element;
  block.part.will_need(begin, std::min(kReadAhead, end - begin));
  buffer_.resize(std::max(buffer_.size(), kCopy));
  for (std::size_t at = begin; at < end; at += kCopy) {
    const auto bytes = std::span(buffer_).first(std::min(kCopy, end - at));
    if (at + kReadAhead < end) block.part.will_need(at + kReadAhead, kCopy);
    block.part.read(at, bytes);
    sink(bytes);
  }
}

// Row `rows.begin` of the slice is the buffer's first.
void SliceStream::gather(const SourceMatrix& source, const SourceBlock& block, Range rows,
                         Range cols) {
  const Range c = intersect(cols, block.cols);
  if (c.size() == 0) return;
  const std::int64_t width = cols.size();
  // As many rows as lie one after the other both in the file and in the buffer go at once.
  const bool dense = c.size() == width && block.stride == width;
  for (std::int64_t r = rows.begin; r < rows.end;) {
    const std::int64_t from = source.source_row(r);
    std::int64_t run = 1;
    if (block.rows.contains(from)) {
      if (dense && source.interleaved_head_dim == 0) run = std::min(rows.end, block.rows.end) - r;
      const std::int64_t first =
          block.first + (from - block.rows.begin) * block.stride + c.begin - block.cols.begin;
      read_run(block, first, run * c.size(), at((r - rows.begin) * width + c.begin - cols.begin));
    }
    r += run;
  }
}

void SliceStream::transpose(const SourceBlock& block, Range rows, Range cols) {
  const Range r = intersect(rows, block.rows);
  const Range c = intersect(cols, block.cols);
  const DType type = type_of(block);
  const std::size_t element = size_of(dtype_);
  const std::byte* const from = block.part.bytes().data();
  // Copied before it is converted: a tensor may begin at any byte of its file.
  alignas(float) std::byte raw[kTile * sizeof(float)];
  alignas(float) std::byte tile[kTile * sizeof(float)];
  for (std::int64_t r0 = r.begin; r0 < r.end; r0 += kTile) {
    const std::int64_t n = std::min(kTile, r.end - r0);
    for (std::int64_t j = c.begin; j < c.end; ++j) {
      const std::int64_t first =
          block.first + (j - block.cols.begin) * block.stride + r0 - block.rows.begin;
      std::memcpy(raw, from + std::size_t(first) * size_of(type), std::size_t(n) * size_of(type));
      convert(raw, type, tile, dtype_, std::size_t(n));
      for (std::int64_t i = 0; i < n; ++i)
        std::memcpy(at((r0 + i - rows.begin) * cols.size() + j - cols.begin),
                    tile + std::size_t(i) * element, element);
    }
  }
}

void SliceStream::read_run(const SourceBlock& block, std::int64_t first, std::int64_t elements,
                           std::byte* out) {
  const DType type = type_of(block);
  const std::size_t offset = std::size_t(first) * size_of(type);
  const std::size_t bytes = std::size_t(elements) * size_of(type);
  if (type == dtype_) return block.part.read(offset, {out, bytes});
  raw_.resize(std::max(raw_.size(), bytes));
  block.part.read(offset, std::span(raw_).first(bytes));
  convert(raw_.data(), type, out, dtype_, std::size_t(elements));
}

void SliceStream::check_halves(const SourceMatrix& source, std::int64_t elements) const {
  if (dtype_ != DType::f16) return;
  constexpr std::uint16_t kExponent = 0x7c00;  // all ones: infinity or NaN
  const auto* bits = reinterpret_cast<const std::uint16_t*>(buffer_.data());
  bool finite = true;
  for (std::int64_t i = 0; i < elements; ++i) finite &= (bits[i] & kExponent) != kExponent;
  OSTRO_REQUIRE(finite, named(source),
                " has values that float16 cannot hold (its largest is 65504): build with --dtype "
                "bfloat16 or float32");
}

void SliceStream::draw(const DummyWeights& dummy, const model::TensorSlice& slice,
                       const ByteSink& sink) {
  dtype_ = slice.dtype;
  const bool norm = slice.name.ends_with("norm");
  const std::int64_t width = slice.col_range.size();
  by_rows(slice, sink, [&](Range rows) {
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      std::byte* out = at((r - rows.begin) * width);
      if (norm) {
        const std::vector<float> ones(std::size_t(width), 1.0f);
        convert(ones.data(), DType::f32, out, dtype_, ones.size());
      } else {
        dummy.fill(slice.name, std::uint64_t(r * slice.cols + slice.col_range.begin),
                   std::uint64_t(width), out);
      }
    }
  });
  if (model::is_quantised(slice))
    scales_[slice.name] = dummy_scales(model::scale_of(slice), dtype_);
}

}  // namespace ostro::builder
