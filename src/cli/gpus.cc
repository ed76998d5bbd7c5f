#include "cli/gpus.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "base/error.h"

namespace ostro::cli {
namespace {

// Text of a fixed size, cut if it is longer.
template <std::size_t kBytes>
struct FixedText {
  char bytes[kBytes];

  void set(const std::string& text) {
    std::memset(bytes, 0, kBytes);
    std::memcpy(bytes, text.data(), std::min(text.size(), kBytes - 1));
  }
  std::string text() const { return bytes; }
};

constexpr std::size_t kMostGpus = 16;  // of a host

struct GpusEntry {
  FixedText<64> host;
  FixedText<256> visible;
  std::int32_t count;
  FixedText<40> gpus[kMostGpus];
};

struct NcclEntry {
  RankNccl::Gpu gpu;
  FixedText<16> version;
  FixedText<1024> error;
};

template <class Entry>
std::vector<Entry> exchange(comm::Communicator& world, Entry mine) {
  std::vector<Entry> all(static_cast<std::size_t>(world.ranks()));
  world.all_gather_columns(matrix(&mine, DType::u8, 1, sizeof(Entry)),
                           matrix(all.data(), DType::u8, 1, sizeof(Entry) * world.ranks()));
  return all;
}

// The ranks of one host, and which of them is meant.
struct Neighbours {
  std::vector<int> ranks;
  int self = 0;
};

Neighbours neighbours(std::span<const RankGpus> ranks, int rank) {
  Neighbours n;
  for (int r = 0; r < int(ranks.size()); ++r) {
    if (ranks[std::size_t(r)].host != ranks[std::size_t(rank)].host) continue;
    if (r == rank) n.self = int(n.ranks.size());
    n.ranks.push_back(r);
  }
  return n;
}

// Each rank of the host sees one GPU, all of them different: as Slurm and others bind.
bool one_each(std::span<const RankGpus> ranks, const Neighbours& n) {
  std::set<std::string> seen;
  for (const int r : n.ranks) {
    const RankGpus& g = ranks[std::size_t(r)];
    if (g.gpus.size() != 1 || !seen.insert(g.gpus[0]).second) return false;
  }
  return true;
}

// The number of the GPU that `rank` takes; -1 if there are not enough.
int index_of(std::span<const RankGpus> ranks, int rank, bool share) {
  const Neighbours n = neighbours(ranks, rank);
  const int gpus = int(ranks[std::size_t(rank)].gpus.size());
  if (int(n.ranks.size()) <= gpus) return n.self;
  if (one_each(ranks, n)) return 0;
  return share && gpus > 0 ? n.self % gpus : -1;
}

// Behind the value of CUDA_VISIBLE_DEVICES.
constexpr char kSetAlike[] = "\" there; set it alike for all ranks of a host, or not at all";

std::string too_few(std::span<const RankGpus> ranks, const Neighbours& n, const RankGpus& mine) {
  for (const int r : n.ranks)
    if (const RankGpus& other = ranks[std::size_t(r)]; other.gpus.empty())
      return text("rank ", r, " sees no GPU: CUDA_VISIBLE_DEVICES is \"", other.visible, kSetAlike);
  const std::size_t here = n.ranks.size(), gpus = mine.gpus.size();
  const char* const noun = gpus == 1 ? " GPU" : " GPUs";
  if (mine.visible.empty())
    return text(here, " ranks are on this host, which has ", gpus, noun,
                "; --share_gpus lets ranks share one");
  return text(here, " ranks are on this host, where CUDA_VISIBLE_DEVICES \"", mine.visible,
              "\" leaves ", gpus, noun,
              " to this one: unset it, since rank i of a host takes GPU i, ",
              "or let ranks share one by --share_gpus");
}

}  // namespace

Place place(std::span<const RankGpus> ranks, int rank, bool share) {
  const RankGpus& mine = ranks[std::size_t(rank)];
  if (mine.gpus.empty()) return {};
  const Neighbours n = neighbours(ranks, rank);
  Place p{.device = index_of(ranks, rank, share)};
  if (p.device < 0) return {.problem = too_few(ranks, n, mine)};
  const std::string& gpu = mine.gpus[std::size_t(p.device)];
  p.ranks = 0;
  for (const int r : n.ranks) {
    const RankGpus& other = ranks[std::size_t(r)];
    const int index = index_of(ranks, r, share);
    if (index < 0 || other.gpus[std::size_t(index)] != gpu) continue;
    ++p.ranks;
    if (share || r == rank) continue;
    return {.problem =
                text("ranks ", std::min(r, rank), " and ", std::max(r, rank),
                     " would take the same GPU of ", mine.host, ": CUDA_VISIBLE_DEVICES is \"",
                     ranks[std::size_t(std::min(r, rank))].visible, "\" and \"",
                     ranks[std::size_t(std::max(r, rank))].visible, kSetAlike)};
  }
  return p;
}

std::vector<RankGpus> exchange_gpus(comm::Communicator& world, const RankGpus& mine) {
  GpusEntry entry{};
  entry.host.set(mine.host);
  entry.visible.set(mine.visible);
  entry.count = std::int32_t(std::min(mine.gpus.size(), kMostGpus));
  for (std::size_t i = 0; i < std::size_t(entry.count); ++i) entry.gpus[i].set(mine.gpus[i]);
  std::vector<RankGpus> all;
  for (const GpusEntry& e : exchange(world, entry)) {
    all.push_back({.host = e.host.text(), .visible = e.visible.text(), .gpus = {}});
    for (std::size_t i = 0; i < std::size_t(e.count); ++i)
      all.back().gpus.push_back(e.gpus[i].text());
  }
  return all;
}

CommChoice choose_comm(const std::string& comm, std::span<const RankNccl> ranks) {
  using Gpu = RankNccl::Gpu;
  if (comm == "host") return {};
  const bool must = comm == "nccl" || comm == "peer";
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (ranks[r].gpu == Gpu::own) continue;
    OSTRO_REQUIRE(!must, "--comm ", comm, " needs a GPU of its own for each rank; rank ", r,
                  ranks[r].gpu == Gpu::none ? " runs on a CPU" : " shares its GPU");
    return {};
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (ranks[r].version.empty()) {
      OSTRO_SUPPORTED(!must, "rank ", r, ": ", ranks[r].error);
      return {.reason = text("rank ", r, ": ", ranks[r].error)};
    }
    if (ranks[r].version == ranks[0].version) continue;
    const std::string differ = text("rank ", r, " has NCCL ", ranks[r].version, ", rank 0 has ",
                                    ranks[0].version, ": install the same on all hosts");
    OSTRO_REQUIRE(!must, differ);
    return {.reason = differ};
  }
  return {.nccl = true, .reason = {}};
}

std::vector<RankNccl> exchange_nccl(comm::Communicator& world, const RankNccl& mine) {
  NcclEntry entry{.gpu = mine.gpu, .version = {}, .error = {}};
  entry.version.set(mine.version);
  entry.error.set(mine.error);
  std::vector<RankNccl> all;
  for (const NcclEntry& e : exchange(world, entry))
    all.push_back({.gpu = e.gpu, .version = e.version.text(), .error = e.error.text()});
  return all;
}

}  // namespace ostro::cli
