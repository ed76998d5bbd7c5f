// Small engines of tests: every element of every matrix has a value of its own.
#pragma once

#include "checkpoint/engine_reader.h"
#include "checkpoint/engine_writer.h"
#include "checkpoint/files.h"

namespace ostro::testing {

using checkpoint::EngineReader;
using checkpoint::EngineTensor;
using checkpoint::EngineWriter;
using checkpoint::RankWriter;

inline float value_at(std::string_view name, std::int64_t row, std::int64_t col) {
  return float(name.size()) * 1e6f + float(name.back()) * 1e4f + float(row * 100 + col);
}

// The elements of a block, row by row.
inline std::vector<float> block_of(std::string_view name, Range rows, Range cols) {
  std::vector<float> values;
  for (std::int64_t r = rows.begin; r < rows.end; ++r)
    for (std::int64_t c = cols.begin; c < cols.end; ++c) values.push_back(value_at(name, r, c));
  return values;
}

inline EngineTensor piece(const std::string& name, std::int64_t rows, std::int64_t cols,
                          Range row_range, Range col_range) {
  return {name, DType::f32, rows, cols, row_range, col_range};
}
inline EngineTensor whole(const std::string& name, std::int64_t rows, std::int64_t cols) {
  return piece(name, rows, cols, {0, rows}, {0, cols});
}

inline void append_all(RankWriter& writer, const std::vector<EngineTensor>& tensors) {
  for (const EngineTensor& t : tensors) {
    const std::vector<float> values = block_of(t.name, t.row_range, t.col_range);
    writer.append(std::as_bytes(std::span(values)));
  }
}

inline void write_engine(const fs::path& dir, const std::vector<std::vector<EngineTensor>>& ranks) {
  EngineWriter writer(dir);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    RankWriter& rank = writer.rank(int(i), ranks[i]);
    append_all(rank, ranks[i]);
    rank.finish();
  }
  writer.commit(R"({"model":{"layers":1}})");
}

}  // namespace ostro::testing
