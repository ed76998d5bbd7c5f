// Memory of the GPUs of one host that all ranks of a group map, for sums without NCCL
// (backends/cuda/kernels/peer_sum.h).
//
//   std::string why;
//   auto memory = PeerMemory::open(host, queue, why);  // null: why not
//   cuda::peer_sum(queue.stream, memory->peers(), x, false);
#pragma once

#include <memory>
#include <string>

#include "backends/cuda/kernels/peer_sum.h"
#include "backends/cuda/queue.h"
#include "comm/communicator.h"

namespace ostro::comm::nccl {

class PeerMemory {
 public:
  // For the ranks of `host`, 2 to cuda::kMostPeers, each of which brings its queue. Collective; all
  // ranks get their part, or null and the same reason: another host, a GPU that does not let others
  // at its memory, or a sum that did not come out right when it was tried.
  static std::unique_ptr<PeerMemory> open(Communicator& host, const cuda::Queue&, std::string& why);
  // Memory that others may still write to, since they have not closed theirs, stays until the
  // process ends.
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  const cuda::Peers& peers() const { return peers_; }

  // Kernels that wait for other ranks end, now and from here on; their results mean nothing.
  void stop() noexcept;
  // Collective: after the last sum of every rank.
  void close(Communicator& host);

 private:
  explicit PeerMemory(const cuda::Queue& queue) : queue_(queue) {}

  void allocate(int rank, int ranks);
  void open_others(const void* handles);
  void unmap() noexcept;
  void try_a_sum();

  cuda::Queue queue_;
  cuda::Peers peers_;
  std::uint32_t* stopped_ = nullptr;
  bool closed_ = false;
};

}  // namespace ostro::comm::nccl
