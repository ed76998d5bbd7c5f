// Ranks that compute one model together. Every rank of a group makes the same calls in the same
// order (rank.same_plan); a rank that dies or a call that times out throws DeviceError naming the
// rank and the collective, never hangs.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "tensor/view.h"

namespace ostro::comm {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  // data[i] = sum over ranks of data[i], f32, in rank order 0, 1, 2 ... whatever the size, so that
  // the result is the same bits on every rank and does not depend on the number of rows
  // (batch.invariant). `data` is contiguous.
  virtual void all_reduce_sum(View data) = 0;

  // Rank r's `part` [rows, cols_r] lands in columns [sum of the cols before r, + cols_r) of every
  // rank's `whole` [rows, cols]. The cols_r may differ between ranks: part_of(cols, r, ranks).
  // Any dtype; `part` may be a column range of anything, `whole` is contiguous.
  virtual void all_gather_columns(View part, View whole) = 0;

  // Point to point, contiguous, in order between each pair of ranks.
  virtual void send(View data, int to) = 0;
  virtual void receive(View data, int from) = 0;

  // Host bytes from `root` to all: step plans and control.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void barrier() = 0;

  // The ranks that give the same `color`, ordered by `key`, as a group of their own. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
};

// The group of one rank: every collective is the identity.
std::unique_ptr<Communicator> make_single();

}  // namespace ostro::comm
