// Groups of ranks that each have a GPU of their own, over NCCL: calls on device memory join the
// queue of the backend and return, so that nothing waits for the host between layers, and they may
// be recorded in CUDA graphs.
//
//   auto transport = std::make_shared<Transport>(gpu, load(), options);
//   auto tp = make_group(transport, world.split(stage, tp_rank));
//
// What NCCL does not do goes through the group of host memory that a group is made of: views of
// host memory, broadcast, barrier, split, wait_for_message, and how the ranks find each other.
//
// Sums. NCCL's own order of summing depends on its algorithm, which it chooses by size: rings begin
// each part of the data at another rank. Two ranks give the same bits in any order, so theirs is
// NCCL's all-reduce; of more ranks NCCL only moves the data, and a kernel sums in rank order, as on
// a host: the same bits as any other transport at any size (batch.invariant).
//
// Peer memory. Ranks whose GPUs can write to each other's memory sum small data and what comes with
// it without NCCL (peer_memory.h), in rank order too, if `peer_memory` lets them: the same bits.
//
// Time. A call that does not end, NCCL's own errors and the failure of another rank are seen while
// the backend waits for its queue (watch.h): they abort the groups, and the wait throws
// DeviceError.
//
// Switched off in this process's environment: NVLink multicast (NCCL_NVLS_ENABLE=0), which can put
// out of service GPUs that are shared with others; and, unless it is set, the registration of
// recorded buffers (NCCL_GRAPH_REGISTER), for which all ranks would have to record at the same
// time.
#pragma once

#include <memory>
#include <vector>

#include "backends/cuda/queue.h"
#include "base/log.h"
#include "comm/communicator.h"
#include "comm/nccl/library.h"
#include "comm/nccl/watch.h"

namespace ostro::comm::nccl {

enum class UsePeerMemory { never, where_possible, always };

struct Options {
  int rank = 0;                // of this process among all, for messages
  double stall_seconds = 300;  // how long a rank that lives may keep the others waiting
  UsePeerMemory peer_memory = UsePeerMemory::where_possible;
  Log log = {};  // rank 0 of each group says how its ranks talk
};

// What the groups of one GPU share. `gpu` must outlive it and every group.
class Transport {
 public:
  Transport(ops::Backend& gpu, Library library, const Options&);
  ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  const Library& library() const { return library_; }
  const cuda::Queue& queue() const { return queue_; }
  int rank() const { return options_.rank; }
  UsePeerMemory peer_memory() const { return options_.peer_memory; }
  const Log& log() const { return options_.log; }
  void wait() { gpu_.wait(); }
  Watch& watch() { return watch_; }

  // Whether what joins the queue now is being recorded.
  bool recording() const;

 private:
  Watch::Marks marks();

  ops::Backend& gpu_;
  Library library_;
  cuda::Queue queue_;
  Options options_;
  std::vector<cudaEvent_t> events_;
  Watch watch_;
};

// The ranks of `host`, two or more, as a group of device memory. Collective; throws DeviceError if
// NCCL cannot start it or takes longer than the stall time-out.
std::unique_ptr<Communicator> make_group(std::shared_ptr<Transport>,
                                         std::unique_ptr<Communicator> host);

}  // namespace ostro::comm::nccl
