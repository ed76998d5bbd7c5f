// The parts of ops::ExpertMlp around its two products.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/kernels/gemm.h"
#include "ops/moe.h"

namespace ostro::cuda {

// The (token, choice) pairs whose expert is local, sorted by expert, then token, then choice: a
// slot each. All in device memory, filled by group_by_expert.
struct ExpertGroups {
  WeightRef* gate;           // [experts]
  WeightRef* up;             // [experts]
  WeightRef* down;           // [experts]
  std::int32_t* start;       // [experts + 1] first slot
  std::int32_t* token;       // [tokens * top_k], by slot
  std::int32_t* slot_of;     // [tokens * top_k], by token and choice; -1: not local
  TokenTile* tiles;          // [most_tiles]
  std::int32_t* tile_count;  // [2]: all; those of more than kSmallTile, which come first
};

// What the experts give, [slots, hidden] f32, and where: [tokens * top_k] as above.
struct ExpertSums {
  const std::int32_t* slot_of;
  const float* out;
};

// At most so many local experts on one device; of quantised weights, whose scales are passed too.
inline constexpr std::int64_t kMostExperts = 1024, kMostE4m3Experts = 640;

void group_by_expert(cudaStream_t, const ops::ExpertMlp&, int token_tile, const ExpertGroups&);

// Rows of x of `bytes` each and what becomes of them: y[slot_of[t, j]] = x[t] where that is not
// negative, and so the scales of e4m3 rows (else null). All rows start at 16 bytes.
struct SpreadRows {
  const char* x;
  std::int64_t x_row_bytes;
  const float* x_scale;
  int bytes;
  char* y;
  std::int64_t y_row_bytes;
  float* y_scale;
};
void spread_rows(cudaStream_t, const SpreadRows&, const std::int32_t* slot_of, std::int64_t tokens,
                 std::int64_t top_k);

// y[t, :] = sum over j in rising order of weights[t, j] * out[slot_of[t, j], :].
void combine_experts(cudaStream_t, const ops::ExpertMlp&, const std::int32_t* slot_of,
                     const float* out);

}  // namespace ostro::cuda
