// Sums over ranks whose GPUs write to each other's memory: where things lie in it, and how often
// data crosses. Host code, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ostro::cuda {

inline constexpr int kMostPeers = 8;

// Blocks of a sum: row r of a call is block r % kPeerBlocks' on every rank, which waits for the
// same block of the other ranks. An H100 with 132 multiprocessors holds all at once; on one that
// does not the blocks that run are the lowest, which wait for nobody behind them.
inline constexpr int kPeerBlocks = 128;
// The widest row: a thread keeps its part in registers.
inline constexpr int kMostPeerColumns = 6144;  // of Mixtral 8x22B

// Each 64-bit word carries 32 bits of data and, as the sign that it has arrived, the round of its
// block: a row takes 8 bytes an element.
inline constexpr std::size_t kPeerRowBytes = std::size_t{kMostPeerColumns} * 8;
// A block's rows alternate between two places: who has received a row of a round knows that its
// sender has used up those of the round before the last.
inline constexpr int kPeerPlaces = 2;

// A rank's memory: [place][from: a rank, or `ranks` for sums][block] of kPeerRowBytes.
constexpr std::size_t peer_bytes(int ranks) {
  return kPeerPlaces * std::size_t(ranks + 1) * kPeerBlocks * kPeerRowBytes;
}

// Whether a sum of so many f32 goes in two rounds: each row to one rank, that sums it and sends
// it to all, instead of to all ranks at once. It saves bytes and waits twice.
bool peer_sum_in_two_rounds(int ranks, std::int64_t elements);

// Whether ranks sum so many f32 in peer memory at all: NCCL carries more of them faster, since it
// needs no sign of arrival in every word.
bool peer_sum_pays(std::int64_t elements);

}  // namespace ostro::cuda
