// Who looks, while a rank waits for its GPU, whether the others are still there: a collective on a
// GPU waits for its peers without end, and CUDA waits for it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ostro::comm::nccl {

// One call of a group that has joined the GPU's queue.
struct Call {
  const char* name = "";
  std::size_t bytes = 0;
  const std::string* group = nullptr;  // "ranks 0, 1"; lives as long as the group
};

// One for all groups of a GPU; belongs to the thread of its backend.
class Watch {
 public:
  // A group as the watch sees it.
  class Member {
   public:
    virtual ~Member() = default;
    virtual void throw_if_failed() = 0;  // DeviceError if a rank or the group itself has failed
    virtual void abort() noexcept = 0;   // ends its calls on the GPU wherever they are
  };

  // Places in the GPU's queue, kSlots of them, used in turn.
  static constexpr std::size_t kSlots = 256;
  struct Marks {
    std::function<void(std::size_t slot)> set;     // behind what is in the queue
    std::function<bool(std::size_t slot)> passed;  // the queue has come to where it was set last
  };

  // `rank` is this one among all; a wait of more than `stall_seconds` is a failure.
  Watch(int rank, double stall_seconds, Marks marks);

  void add(Member& member) { members_.push_back(&member); }
  void remove(Member& member) { std::erase(members_, &member); }

  // `call` is in the queue. Those of a recording are not told.
  void called(const Call& call);

  // One turn of a wait that has lasted `seconds`: pauses, and looks after the others now and then.
  // Throws the DeviceError of a member, or one that names this rank and the oldest call that has
  // not ended when the wait has been too long, and aborts all members before.
  void turn(double seconds);

  double stall_seconds() const { return stall_seconds_; }

 private:
  std::string unfinished() const;
  void abort_all() noexcept;

  int rank_;
  double stall_seconds_;
  Marks marks_;
  std::vector<Member*> members_;
  std::array<Call, kSlots> calls_{};
  std::int64_t count_ = 0;     // of calls so far
  double looked_seconds_ = 0;  // into this wait, when the members were looked after last
};

}  // namespace ostro::comm::nccl
