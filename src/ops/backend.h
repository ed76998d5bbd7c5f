// Everything the model needs from a device, on one page.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/activations.h"
#include "ops/attention.h"
#include "ops/copy_blocks.h"
#include "ops/draw.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/moe_block.h"
#include "ops/sample.h"
#include "ops/tactics.h"
#include "tensor/buffer.h"

namespace ostro::ops {

// Work of a backend that it can do again.
class Recording {
 public:
  virtual ~Recording() = default;
};

// One device and its one queue of work. Calls are enqueued in order and may return before the work
// is done. Not thread-safe: one Backend belongs to one thread.
class Backend {
 public:
  virtual ~Backend() = default;

  // Checks the contract of `op`, then enqueues it. Throws InvalidArgument if the contract is
  // broken, Unsupported if this device lacks the dtype or shape.
  template <class Op>
  void run(const Op& op) {
    check(op);
    enqueue(op);
  }

  // Device memory, 64-byte aligned, zero. Throws DeviceError with the size if there is none.
  virtual Buffer allocate(std::size_t bytes) = 0;

  // Makes a host weight readable by this backend's kernels. `host` must outlive the backend if it
  // is a memory map (a CPU may read it where it lies); the backend owns what it copies. A weight
  // that is in this device's memory, rows at 16 bytes, stays where it is.
  virtual quant::Weight place(const quant::Weight& host) = 0;

  // Enqueues a copy of a contiguous matrix between host and device, either way.
  virtual void copy(const View& from, const View& to) = 0;

  virtual void
  wait() = 0;  // blocks until all enqueued work is done; errors of that work surface here

  // How this backend's products with e4m3 weights round their activations: what a model asks for.
  virtual Activations e4m3_activations() const = 0;

  // The tactics that run() may take for a product of so many tokens, the one that it takes first;
  // fewer than two: there is nothing to choose.
  virtual std::vector<Tactic> tactics(const Product&, [[maybe_unused]] std::int64_t tokens) const {
    return {};
  }
  // From here on run() and record() take the tactics of the table where it has one. Throws
  // InvalidArgument for one that this backend does not have.
  virtual void use(const Tactics& table) {
    OSTRO_REQUIRE(table.all().empty(), description(), " has no tactics to choose from");
  }

  // Whether record() gives anything.
  virtual bool records() const { return false; }
  // Records what `work` enqueues, doing none of it: the same operations on the same memory, which
  // only run(), copy() between device memory, and nothing that waits may be. Null if this backend
  // does not record, or if the work has moved its scratch memory: then it has to be done once.
  virtual std::unique_ptr<Recording> record([[maybe_unused]] const std::function<void()>& work) {
    return nullptr;
  }
  // Enqueues the recorded work; false, and nothing is enqueued, if scratch memory has moved since.
  virtual bool replay(const Recording&) { return false; }

  virtual Device device() const = 0;
  virtual std::string description() const = 0;        // "CPU AVX512-BF16, 2 threads"
  virtual std::size_t free_memory_bytes() const = 0;  // what allocate() could still give

 protected:
  virtual void enqueue(const Draw&) = 0;
  virtual void enqueue(const Embed&) = 0;
  virtual void enqueue(const GatherRows&) = 0;
  virtual void enqueue(const AddRmsNorm&) = 0;
  virtual void enqueue(const Linear&) = 0;
  virtual void enqueue(const RotaryAngles&) = 0;
  virtual void enqueue(const RotaryAppend&) = 0;
  virtual void enqueue(const PagedAttention&) = 0;
  virtual void enqueue(const CopyBlocks&) = 0;
  virtual void enqueue(const Route&) = 0;
  virtual void enqueue(const ExpertMlp&) = 0;
  virtual void enqueue(const Sample&) = 0;
  // One after the other, where a backend does not join them.
  virtual void enqueue(const MoeBlock& op) {
    enqueue(op.norm);
    enqueue(op.route);
    enqueue(op.mlp);
    enqueue(op.next);
  }
};

}  // namespace ostro::ops
