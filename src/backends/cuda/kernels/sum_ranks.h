// The sum over ranks, where the ranks' parts have arrived.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ostro::cuda {

// sum[i] = ((part_0[i] + part_1[i]) + part_2[i]) + ... for i in [0, n), f32, as
// comm::sum_in_rank_order adds on a host: the same bits. part_q is parts + q * n, but for q == rank
// it is `own`, which may be `sum`.
void sum_ranks(cudaStream_t, const float* parts, const float* own, int rank, int ranks, float* sum,
               std::int64_t n);

}  // namespace ostro::cuda
