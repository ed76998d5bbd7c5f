// The Communicator of ranks on one machine, over shared memory.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "comm/local/process.h"

namespace ostro::comm::local {

// How much of the shared memory a group takes; touched only as far as it is used.
struct GroupShape {
  int ranks = 1;
  std::size_t slot_bytes = 0;  // a rank's share of a collective is moved in pieces of this size
  std::size_t ring_bytes = 0;  // what a send holds until it is received; a power of two

  std::size_t bytes() const;
};

// The group whose memory begins at `offset`: member i is rank members[i] of the machine, and this
// process is member `rank`. `process` must outlive it.
std::unique_ptr<Communicator> make_group(Process& process, const GroupShape& shape,
                                         std::size_t offset, std::vector<int> members, int rank);

// Makes the memory at `offset` ready for make_group; one process does this, before all others.
void prepare_group(SharedMemory& memory, const GroupShape& shape, std::size_t offset);

}  // namespace ostro::comm::local
