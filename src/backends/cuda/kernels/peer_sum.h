// Sums over the ranks of a group whose GPUs write to each other's memory, alone or with what comes
// next: the residual stream and its norm. The ranks' kernels meet each other: each rank must start
// the same calls in the same order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/plan/peer_plan.h"
#include "tensor/view.h"

namespace ostro::cuda {

// A rank's view of a group.
struct Peers {
  int rank = 0, ranks = 0;             // at most kMostPeers
  std::byte* memory[kMostPeers] = {};  // peer_bytes(ranks) of each rank, mapped here; zero at first
  std::uint32_t* rounds = nullptr;     // [kPeerBlocks], this rank's alone; zero at first
  const std::uint32_t* stopped = nullptr;  // host memory; not 0: who waits gives up, for good
};

// Whether peer_sum() is to be used: of a multiple of 4 elements at 16 bytes, and few enough.
bool peer_sum_takes(const View& data);
// data[i] = ((data_0[i] + data_1[i]) + ...) over the ranks in their order: the same bits on every
// rank, whatever the size. `data` f32, contiguous.
void peer_sum(cudaStream_t, const Peers&, const View& data, bool two_rounds);

// Of x [tokens, hidden] f32, contiguous, with s the sum over ranks as above:
//   residual += s;  y = weight * residual / rms(residual)    (y and weight may be empty)
// with the bits of peer_sum() and add_rms_norm() one after the other; x is left as it was.
struct PeerSumNorm {
  View x, residual, weight, y;
  float eps = 0;
};
// The same: hidden is a multiple of 4, at most kMostPeerColumns, rows aligned to packs of 4.
bool peer_sum_norm_takes(const PeerSumNorm&);
void peer_sum_norm(cudaStream_t, const Peers&, const PeerSumNorm&, bool two_rounds);

}  // namespace ostro::cuda
