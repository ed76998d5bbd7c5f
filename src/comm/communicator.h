// Ranks that compute one model together. Every rank of a group makes the same calls in the same
// order (rank.same_plan); a rank that dies or a call that times out throws DeviceError naming the
// rank and the collective, never hangs.
//
//   auto stage = world.split(pp_rank, tp_rank);      // the ranks of one pipeline stage
//   stage->all_reduce_sum(matrix(y, DType::f32, tokens, hidden));
//
// Waiting. broadcast, barrier, split and wait_for_message wait for as long as the other ranks live:
// a rank without work waits for its next step plan in one of them, at almost no cost to the
// processor. The others move data inside a step and throw DeviceError after the transport's stall
// time-out.
// Threads. A communicator belongs to one thread at a time. After a throw the group is unusable: a
// rank ends through World::finish (comm/world.h).
// All views are host memory; a transport for devices says otherwise in its own header.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "tensor/view.h"

namespace ostro::comm {

// The end of a layer's part, with s = x summed over ranks as all_reduce_sum() does:
//   residual += s;  y = weight * residual / rms(residual)     (ops::AddRmsNorm of s)
// Views, dtypes and eps as there; x means nothing afterwards.
struct SumAddNorm {
  View x, residual, weight, y;
  float eps = 0;
};

// What the ranks of a group send each other inside steps.
enum class Traffic {
  collectives,  // all_reduce_sum, all_gather_columns
  neighbours    // from rank r to rank r + 1
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  // data[i] = sum over ranks of data[i], f32, in rank order 0, 1, 2 ... whatever the size, so that
  // the result is the same bits on every rank and does not depend on the number of rows
  // (batch.invariant). `data` is contiguous.
  virtual void all_reduce_sum(View data) = 0;

  // Does it in one go and returns true, or does nothing and returns false, on all ranks alike: then
  // all_reduce_sum() and the operation give the same bits.
  virtual bool sum_add_norm(const SumAddNorm&) { return false; }

  // Rank r's `part` [rows, cols_r] lands in columns [sum of the cols before r, + cols_r) of every
  // rank's `whole` [rows, cols], where cols_r is the size of part_of(cols, r, ranks).
  // Any dtype; `part` may be a column range of anything, its place in `whole` included; `whole` is
  // contiguous.
  virtual void all_gather_columns(View part, View whole) = 0;

  // Point to point, contiguous, in order between each pair of ranks. The two ends agree on the
  // bytes. A send may return before the receiver has called, or wait for it: two ranks that send to
  // each other first may wait for ever.
  virtual void send(View data, int to) = 0;
  virtual void receive(View data, int from) = 0;
  // Until rank `from` has begun to send what this rank has not received.
  virtual void wait_for_message(int from) = 0;

  // From here on a send to `to` copies its data and returns without waiting, as long as `to` has no
  // more than 64 messages of `bytes` together to receive. Collective, once for a group, before any
  // message in it: each rank names one other. Throws DeviceError if there is no memory for it.
  virtual void buffer_sends(int to, std::size_t bytes) = 0;
  // Makes the connections and the memory that such traffic takes, before others divide what memory
  // is left. Collective, once for a group.
  virtual void connect(Traffic) {}
  // Moves on what is on its way, at almost no cost: to be called now and then while computing.
  virtual void progress() {}

  // Whether a call on device memory only joins the device's queue, as an operation does: then it
  // may be part of what a backend records.
  virtual bool enqueues() const { return false; }
  // Throws DeviceError, as a call that waits would, if another rank has failed: for whoever waits
  // for something else.
  virtual void throw_if_failed() {}

  // Host bytes from `root` to all: step plans and control.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void barrier() = 0;

  // The ranks that give the same `color` (>= 0), ordered by `key` and then by rank here, as a group
  // of their own. Collective. The new group must not outlive the World that it stems from.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
};

// The group of one rank: every collective is the identity.
std::unique_ptr<Communicator> make_single();

}  // namespace ostro::comm
