// Which GPU each rank takes and how the ranks talk: decided alike on every rank, from what all say
// of themselves.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace ostro::cli {

// What a rank says before it takes a GPU.
struct RankGpus {
  std::string host;
  std::string visible;            // CUDA_VISIBLE_DEVICES; empty if it is not set
  std::vector<std::string> gpus;  // identities of those that CUDA lets it use, in CUDA's order
};

struct Place {
  int device = -1;           // in the rank's own order; -1: none
  int ranks = 1;             // that take this GPU
  std::string problem = {};  // why there is none, though the rank sees GPUs
};

// The GPU of rank `rank`: rank i of a host takes the i-th that it sees, or the only one, if each
// rank of the host sees another. With `share` ranks of a host may take one together.
Place place(std::span<const RankGpus> ranks, int rank, bool share);

// What every rank of `world` says of itself. Collective.
std::vector<RankGpus> exchange_gpus(comm::Communicator& world, const RankGpus& mine);

// What a rank says before it talks.
struct RankNccl {
  enum class Gpu : std::int32_t { none, shared, own };
  Gpu gpu = Gpu::none;
  std::string version;  // of its NCCL; empty if it has none
  std::string error;    // then: why
};

// Whether the ranks talk over NCCL.
struct CommChoice {
  bool nccl = false;
  std::string reason;  // why not, where it could be expected; for a warning
};

// `comm` is --comm: auto, peer, nccl or host. Throws InvalidArgument, or Unsupported where NCCL is
// not there, if it is peer or nccl and a rank cannot; the message names the rank.
CommChoice choose_comm(const std::string& comm, std::span<const RankNccl> ranks);

// What every rank of `world` says of itself. Collective.
std::vector<RankNccl> exchange_nccl(comm::Communicator& world, const RankNccl& mine);

}  // namespace ostro::cli
