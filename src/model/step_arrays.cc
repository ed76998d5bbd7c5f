#include "model/step_arrays.h"

#include <algorithm>
#include <cstring>

#include "base/math.h"

namespace ostro::model {
namespace {

constexpr std::int64_t kAlignWords = 16;  // 64 bytes
constexpr std::int64_t kMostPadded = 512;

std::int64_t padded_tokens(std::int64_t n) {
  for (std::int64_t size : {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128})
    if (n <= size) return size;
  return round_up<std::int64_t>(n, n <= 256 ? 32 : 64);
}

std::int64_t padded_blocks(std::int64_t n) {
  std::int64_t power = 1;
  while (power < n) power *= 2;
  return n <= power / 4 * 3 ? power / 4 * 3 : power;
}

// Copies `values` and sets what follows of the row.
template <class T>
void put(const View& to, std::span<const T> values, T rest) {
  T* out = to.as<T>();
  std::ranges::copy(values, out);
  std::fill(out + values.size(), out + to.rows * to.cols, rest);
}

}  // namespace

StepShape shape_of(const Step& step) {
  std::int64_t single = 0;
  while (single < step.requests() && step.query_start[std::size_t(single + 1)] == single + 1)
    ++single;
  return {.tokens = step.tokens(),
          .requests = step.requests(),
          .blocks_each = step.blocks_each,
          .logit_rows = std::int64_t(step.logit_rows.size()),
          .samples = step.sample_rows(),
          .single = single};
}

bool pad_decode_step(const Step& step, std::int64_t most_tokens, std::int64_t most_blocks,
                     StepShape& shape) {
  shape = shape_of(step);
  const std::int64_t n = shape.tokens;
  if (n == 0 || shape.requests != n || shape.logit_rows != n || shape.samples > n) return false;
  for (std::int64_t r = 0; r < n; ++r)
    if (step.query_start[std::size_t(r)] != r || step.logit_rows[std::size_t(r)] != r) return false;
  const std::int64_t padded = padded_tokens(n);
  if (padded > std::min(most_tokens, kMostPadded)) return false;
  shape = {.tokens = padded,
           .requests = padded,
           .blocks_each = std::min(padded_blocks(shape.blocks_each), most_blocks),
           .logit_rows = padded,
           .samples = padded,
           .single = 0};
  return true;
}

std::vector<std::int64_t> padded_decode_tokens(std::int64_t most_tokens) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t n = 1; padded_tokens(n) <= std::min(most_tokens, kMostPadded);
       n = sizes.back() + 1)
    sizes.push_back(padded_tokens(n));
  return sizes;
}

std::int64_t padded_shapes(std::int64_t most_tokens, std::int64_t most_blocks) {
  std::int64_t widths = 0;
  for (std::int64_t n = 1; n <= most_blocks; ++n)
    widths += n == most_blocks || n == padded_blocks(n);
  return std::int64_t(padded_decode_tokens(most_tokens).size()) * widths;
}

StepArrays::StepArrays(const StepShape& s, std::int64_t half, View memory) {
  const auto take = [&](DType dtype, std::int64_t rows, std::int64_t cols) {
    const std::int64_t at = words;
    words = round_up(words + rows * cols, kAlignWords);
    if (!memory) return View{};
    OSTRO_CHECK(words <= memory.cols, "the arrays of a step need ", words, " words of ",
                memory.cols);
    return matrix(memory.as<std::int32_t>() + at, dtype, rows, cols, memory.device);
  };
  ids = take(DType::i32, 1, s.tokens);
  positions = take(DType::i32, 1, s.tokens);
  rope_table = take(DType::i32, 1, s.tokens);
  requests.query_start = take(DType::i32, 1, s.requests + 1);
  requests.context_len = take(DType::i32, 1, s.requests);
  requests.block_table = take(DType::i32, s.requests, s.blocks_each);
  requests.single = s.single;
  const View rest_start = take(DType::i32, 1, s.requests + 1);  // room for that of any `single`
  if (rest_start) requests.rest_start = rest_start.cols_of({0, s.requests - s.single + 1});
  live = take(DType::i32, 1, 1);
  logit_rows = take(DType::i32, 1, s.logit_rows);
  samples = take(DType::i32, s.samples, ops::kSettingWords);
  if (half > 0) inv_freq = take(DType::f32, s.requests, half);
}

void fill(const StepArrays& a, const Step& step, std::span<const float> frequencies) {
  const std::int64_t tokens = step.tokens(), requests = step.requests();
  put<std::int32_t>(a.ids, step.ids, 0);
  put<std::int32_t>(a.requests.query_start, step.query_start, std::int32_t(tokens));
  put<std::int32_t>(a.requests.context_len, step.context_len, 0);
  if (const std::int64_t single = a.requests.single; single > 0)
    for (std::int64_t r = single; r <= requests; ++r)
      a.requests.rest_start.as<std::int32_t>()[r - single] =
          step.query_start[std::size_t(r)] - std::int32_t(single);
  put<std::int32_t>(a.logit_rows, step.logit_rows, 0);
  put<std::int32_t>(a.samples, step.samples, -1);
  *a.live.as<std::int32_t>() = std::int32_t(tokens);

  std::int32_t* const positions = a.positions.as<std::int32_t>();
  std::int32_t* const tables = a.rope_table.as<std::int32_t>();
  std::fill_n(positions, a.positions.cols, 0);
  std::fill_n(tables, a.rope_table.cols, 0);
  for (std::size_t r = 0; r < std::size_t(requests); ++r) {
    const std::int32_t begin = step.query_start[r], end = step.query_start[r + 1];
    for (std::int32_t t = begin; t < end; ++t) {
      positions[t] = step.context_len[r] - end + t;
      if (a.inv_freq) tables[t] = std::int32_t(r);
    }
  }
  const View& table = a.requests.block_table;
  for (std::int64_t r = 0; r < table.rows; ++r) {
    std::int32_t* const row = table.row<std::int32_t>(r);
    std::fill_n(row, table.cols, -1);
    if (r < requests && step.blocks_each > 0)
      std::copy_n(step.block_table.begin() + r * step.blocks_each, step.blocks_each, row);
  }
  if (a.inv_freq) put<float>(a.inv_freq, frequencies, 0.0f);
}

}  // namespace ostro::model
