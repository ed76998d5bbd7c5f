#include "comm/local/group.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <type_traits>

#include "comm/contract.h"
#include "comm/local/shared.h"
#include "comm/packed.h"
#include "comm/sum.h"

namespace ostro::comm::local {
namespace {

// Up to here every rank sums all of the data by itself: one round of waiting instead of two, for
// reading ranks times as much.
constexpr std::size_t kOneRoundBytes = std::size_t{32} << 10;

enum class Call : std::uint8_t {
  all_reduce_sum,
  all_gather_columns,
  broadcast,
  barrier,
  split,
  buffer_sends
};

constexpr const char* kCallNames[] = {
    "all_reduce_sum", "all_gather_columns", "broadcast", "barrier", "split", "buffer_sends"};

// Control waits while its peers live; a step does not.
constexpr bool timed(Call call) {
  return call == Call::all_reduce_sum || call == Call::all_gather_columns;
}

// A call and its size, in one word for the others to compare with their own.
constexpr std::uint64_t kSizeBits = 56;
std::uint64_t encode(Call call, std::size_t bytes) {
  return std::uint64_t{static_cast<std::uint8_t>(call)} << kSizeBits | bytes;
}
std::string describe(std::uint64_t call) {
  return text(kCallNames[call >> kSizeBits], " of ", call & ((std::uint64_t{1} << kSizeBits) - 1),
              " bytes");
}

// What one member tells the others.
struct Arrival {
  Flag phase;                            // the number of the last phase that it has arrived in
  std::atomic<std::uint64_t> call[2]{};  // its call in phase k, at k % 2
};

// A stream of bytes from one member to another: positions modulo 2^32, the byte at position p in
// ring[p % its bytes].
struct Channel {
  Flag written;
  Flag read;
};

// Where a stream's bytes lie; a power of two of them.
struct Ring {
  std::byte* data;
  std::uint32_t bytes;
};
constexpr std::size_t kTurnBytes = std::size_t{256} << 10;
constexpr std::size_t kLargestRing = std::size_t{1} << 30;  // positions are compared modulo 2^32

// A group's memory: arrivals [ranks], channels [ranks x ranks], slots [ranks x 2], rings
// [ranks x ranks].
struct Layout {
  std::size_t channels, slots, rings, end;

  explicit Layout(const GroupShape& shape) {
    const auto n = static_cast<std::size_t>(shape.ranks);
    channels = n * sizeof(Arrival);
    slots = round_up(channels + n * n * sizeof(Channel), kPage);
    rings = slots + n * 2 * shape.slot_bytes;
    end = rings + n * n * shape.ring_bytes;
  }
};

class Group final : public Communicator {
 public:
  Group(Process& process, const GroupShape& shape, std::size_t offset, std::vector<int> members,
        int rank)
      : process_(process),
        shape_(shape),
        layout_(shape),
        base_(process.memory().at(offset)),
        members_(std::move(members)),
        rank_(rank),
        parts_(members_.size()) {
    for (int from = 0; from < ranks(); ++from)
      for (int to = 0; to < ranks(); ++to)
        rings_.push_back({base_ + layout_.rings + pair(from, to) * shape_.ring_bytes,
                          static_cast<std::uint32_t>(shape_.ring_bytes)});
  }

  int rank() const override { return rank_; }
  int ranks() const override { return shape_.ranks; }

  void all_reduce_sum(View data) override;
  void all_gather_columns(View part, View whole) override;
  void send(View data, int to) override;
  void receive(View data, int from) override;
  void wait_for_message(int from) override;
  void buffer_sends(int to, std::size_t bytes) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  void barrier() override;
  void throw_if_failed() override { process_.throw_if_failed(); }
  std::unique_ptr<Communicator> split(int color, int key) override;

 private:
  // A phase is one round of a collective: a rank may fill its slot, then arrives, then reads the
  // slots of those that it waits for. Slots and calls are double: phase k uses number k % 2. A rank
  // enters phase k once all have arrived in k - 1, and so have left k - 2 whose slots it will
  // overwrite; in most collectives it knows that already from its last wait.
  std::byte* enter(Call call, std::size_t bytes);
  void arrive();
  void wait_for(int member);
  void wait_for_all();

  void wait_for_phase(int member, std::uint32_t phase);
  [[noreturn]] void throw_unreached(Wait result, int member, std::uint32_t phase) const;

  void write(const std::byte* data, std::size_t bytes, int to);
  void read(std::byte* data, std::size_t bytes, int from);
  void wait_for_ring(const Flag& flag, std::uint32_t position, int member, const char* call,
                     bool timed = true);

  void reduce_in_one_round(std::span<float> data);
  void reduce_in_two_rounds(std::span<float> data);

  template <class T>
  std::vector<T> exchange(Call call, const T& mine);

  Arrival& arrival(int member) const { return reinterpret_cast<Arrival*>(base_)[member]; }
  std::byte* slot(int member) const {
    return base_ + layout_.slots +
           (static_cast<std::size_t>(member) * 2 + phase_ % 2) * shape_.slot_bytes;
  }
  std::size_t pair(int from, int to) const {
    return static_cast<std::size_t>(from * shape_.ranks + to);
  }
  Channel& channel(int from, int to) const {
    return reinterpret_cast<Channel*>(base_ + layout_.channels)[pair(from, to)];
  }

  Process& process_;
  GroupShape shape_;
  Layout layout_;
  std::byte* base_;
  std::vector<int> members_;
  int rank_;
  std::uint32_t phase_ = 0;
  std::uint64_t call_ = 0;   // of this phase, encoded
  std::vector<Ring> rings_;  // of each pair
  std::vector<const float*> parts_;
};

// ---- phases

std::byte* Group::enter(Call call, std::size_t bytes) {
  call_ = encode(call, bytes);
  for (int q = 0; q < ranks(); ++q) wait_for_phase(q, phase_);
  ++phase_;
  arrival(rank_).call[phase_ % 2].store(call_, std::memory_order_relaxed);
  return slot(rank_);
}

void Group::arrive() { arrival(rank_).phase.publish(phase_); }

void Group::wait_for(int member) {
  wait_for_phase(member, phase_);
  const std::uint64_t theirs = arrival(member).call[phase_ % 2].load(std::memory_order_relaxed);
  OSTRO_CHECK(theirs == call_, process_.describe(members_[member]), " is in ", describe(theirs),
              " and rank ", process_.rank(), " in ", describe(call_), " (rank.same_plan)");
}

void Group::wait_for_all() {
  for (int q = 0; q < ranks(); ++q) wait_for(q);
}

void Group::wait_for_phase(int member, std::uint32_t phase) {
  const Call call{static_cast<std::uint8_t>(call_ >> kSizeBits)};
  const Wait result = process_.wait(arrival(member).phase, phase, members_[member], timed(call));
  if (result != Wait::reached) throw_unreached(result, member, phase);
}

void Group::throw_unreached(Wait result, int member, std::uint32_t phase) const {
  if (result == Wait::finished)
    OSTRO_THROW(DeviceError, process_.describe(members_[member]), " has finished while rank ",
                process_.rank(), " waits for it in ", describe(call_));
  std::string late;
  for (int q = 0; q < ranks(); ++q)
    if (!arrival(q).phase.reached(phase))
      late += (late.empty() ? "" : ", ") + process_.describe(members_[q]);
  OSTRO_THROW(DeviceError, describe(call_), " on rank ", process_.rank(), " waited ",
              process_.stall_seconds(), " s for ", late);
}

// ---- collectives

void Group::all_reduce_sum(View data) {
  check_all_reduce_sum(data);
  std::span<float> rest(data.as<float>(), static_cast<std::size_t>(data.rows * data.cols));
  if (rest.size_bytes() <= std::min(kOneRoundBytes, shape_.slot_bytes))
    return reduce_in_one_round(rest);
  while (!rest.empty()) {
    const std::size_t piece = std::min(rest.size(), shape_.slot_bytes / sizeof(float));
    reduce_in_two_rounds(rest.first(piece));
    rest = rest.subspan(piece);
  }
}

void Group::reduce_in_one_round(std::span<float> data) {
  std::byte* mine = enter(Call::all_reduce_sum, data.size_bytes());
  if (!data.empty()) std::memcpy(mine, data.data(), data.size_bytes());
  arrive();
  wait_for_all();
  for (int q = 0; q < ranks(); ++q) parts_[q] = reinterpret_cast<const float*>(slot(q));
  sum_in_rank_order(parts_, data.data(), static_cast<std::int64_t>(data.size()));
}

// Round one: everyone's data, except the part that it sums itself, is in its slot; rank r sums part
// r. Round two: the sums are in the slots, each in its owner's.
void Group::reduce_in_two_rounds(std::span<float> data) {
  const auto n = static_cast<std::int64_t>(data.size());
  const Range own = part_of(n, rank_, ranks());

  auto* mine = reinterpret_cast<float*>(enter(Call::all_reduce_sum, data.size_bytes()));
  std::copy(data.begin(), data.begin() + own.begin, mine);
  std::copy(data.begin() + own.end, data.end(), mine + own.end);
  arrive();
  wait_for_all();
  for (int q = 0; q < ranks(); ++q)
    parts_[q] = (q == rank_ ? data.data() : reinterpret_cast<const float*>(slot(q))) + own.begin;

  float* sums = reinterpret_cast<float*>(enter(Call::all_reduce_sum, data.size_bytes()));
  sum_in_rank_order(parts_, sums + own.begin, own.size());
  arrive();
  for (int i = 0; i < ranks(); ++i) {
    const int q = (rank_ + i) % ranks();  // everyone starts at another slot
    wait_for(q);
    const Range part = part_of(n, q, ranks());
    const auto* sum = reinterpret_cast<const float*>(slot(q));
    std::copy(sum + part.begin, sum + part.end, data.begin() + part.begin);
  }
}

void Group::all_gather_columns(View part, View whole) {
  check_all_gather_columns(part, whole, rank_, ranks());
  const auto place = [&](int q) { return whole.cols_of(part_of(whole.cols, q, ranks())); };
  std::size_t longest = 0;
  for (int q = 0; q < ranks(); ++q) longest = std::max(longest, place(q).bytes());
  // The piece of a part that lies in [begin, begin + slot) of its packed form.
  const auto piece = [&](const View& v, std::size_t begin) {
    return std::min(shape_.slot_bytes, v.bytes() - std::min(v.bytes(), begin));
  };

  copy(part, place(rank_));
  std::size_t begin = 0;
  do {
    std::byte* mine = enter(Call::all_gather_columns, whole.bytes());
    if (const std::size_t bytes = piece(part, begin)) pack(part, begin, bytes, mine);
    arrive();
    for (int i = 1; i < ranks(); ++i) {
      const int q = (rank_ + i) % ranks();
      wait_for(q);
      if (const std::size_t bytes = piece(place(q), begin)) unpack(slot(q), begin, bytes, place(q));
    }
    begin += shape_.slot_bytes;
  } while (begin < longest);
}

void Group::broadcast(std::span<std::byte> bytes, int root) {
  check_root(root, ranks());
  std::span<std::byte> rest = bytes;
  do {
    const std::span<std::byte> piece = rest.first(std::min(rest.size(), shape_.slot_bytes));
    std::byte* mine = enter(Call::broadcast, bytes.size());
    if (rank_ == root && !piece.empty()) std::memcpy(mine, piece.data(), piece.size());
    arrive();
    if (rank_ != root) {
      wait_for(root);
      if (!piece.empty()) std::memcpy(piece.data(), slot(root), piece.size());
    }
    rest = rest.subspan(piece.size());
  } while (!rest.empty());
}

void Group::barrier() {
  enter(Call::barrier, 0);
  arrive();
  wait_for_all();
}

template <class T>
std::vector<T> Group::exchange(Call call, const T& mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(enter(call, sizeof(T)), &mine, sizeof(T));
  arrive();
  wait_for_all();
  std::vector<T> all(static_cast<std::size_t>(ranks()));
  for (int q = 0; q < ranks(); ++q) std::memcpy(&all[q], slot(q), sizeof(T));
  return all;
}

std::unique_ptr<Communicator> Group::split(int color, int key) {
  check_color(color);
  struct Wish {
    int color, key;
  };
  const std::vector<Wish> wishes = exchange(Call::split, Wish{color, key});

  std::vector<int> chosen;  // members of this group, in the new group's order
  for (int q = 0; q < ranks(); ++q)
    if (wishes[q].color == color) chosen.push_back(q);
  std::stable_sort(chosen.begin(), chosen.end(), [&](int a, int b) {
    return wishes[std::size_t(a)].key < wishes[std::size_t(b)].key;
  });

  // The first of them takes the memory and tells the others where it is.
  GroupShape shape = shape_;
  shape.ranks = static_cast<int>(chosen.size());
  std::size_t offset = 0;
  if (chosen.front() == rank_) {
    offset = process_.memory().allocate(shape.bytes());
    prepare_group(process_.memory(), shape, offset);
  }
  offset = exchange(Call::split, offset)[chosen.front()];

  const auto self = std::find(chosen.begin(), chosen.end(), rank_);
  const int rank = static_cast<int>(self - chosen.begin());
  std::vector<int> members;
  for (int q : chosen) members.push_back(members_[q]);
  return make_group(process_, shape, offset, std::move(members), rank);
}

// ---- point to point

void Group::send(View data, int to) {
  check_message("send", data, to, rank_, ranks());
  const std::uint64_t bytes = data.bytes();
  write(reinterpret_cast<const std::byte*>(&bytes), sizeof(bytes), to);
  write(static_cast<const std::byte*>(data.data), bytes, to);
}

void Group::receive(View data, int from) {
  check_message("receive", data, from, rank_, ranks());
  std::uint64_t bytes = 0;
  read(reinterpret_cast<std::byte*>(&bytes), sizeof(bytes), from);
  OSTRO_CHECK(bytes == data.bytes(), process_.describe(members_[from]), " sends ", bytes,
              " bytes and rank ", process_.rank(), " receives ", data.bytes(), " (rank.same_plan)");
  read(static_cast<std::byte*>(data.data), bytes, from);
}

void Group::wait_for_message(int from) {
  check_peer("wait_for_message", from, rank_, ranks());
  const Channel& c = channel(from, rank_);
  wait_for_ring(c.written, c.read.value() + 1, from, "wait_for_message", false);
}

void Group::buffer_sends(int to, std::size_t bytes) {
  check_peer("buffer_sends", to, rank_, ranks());
  constexpr std::size_t kSizes = 64 * sizeof(std::uint64_t);  // each message is led by its own
  const std::size_t size = std::bit_ceil(bytes + kSizes);
  if (size > kLargestRing)
    OSTRO_THROW(DeviceError, bytes, " bytes may be on their way from rank ", process_.rank(),
                " to ", process_.describe(members_[to]), "; this machine's ranks have room for ",
                kLargestRing - kSizes);
  struct Place {
    int to;
    std::uint32_t bytes;
    std::size_t offset;  // in the memory of all ranks
  };
  const Place mine{to, static_cast<std::uint32_t>(size), process_.memory().allocate(size)};
  const std::vector<Place> places = exchange(Call::buffer_sends, mine);
  for (int from = 0; from < ranks(); ++from) {
    const Place& p = places[static_cast<std::size_t>(from)];
    rings_[pair(from, p.to)] = {process_.memory().at(p.offset), p.bytes};
  }
}

// Both ends move at most a quarter of the ring and kTurnBytes at a time, so that they work side by
// side, and never across its end.
void Group::write(const std::byte* data, std::size_t bytes, int to) {
  Channel& c = channel(rank_, to);
  const auto [ring_data, size] = rings_[pair(rank_, to)];
  while (bytes > 0) {
    const std::uint32_t written = c.written.value();
    wait_for_ring(c.read, written - size + 1, to, "send");
    const std::uint32_t room = size - (written - c.read.value());
    const std::uint32_t at = written % size;
    const std::size_t n = std::min<std::size_t>({bytes, room, size - at, size / 4, kTurnBytes});
    std::memcpy(ring_data + at, data, n);
    c.written.publish(written + static_cast<std::uint32_t>(n));
    data += n;
    bytes -= n;
  }
}

void Group::read(std::byte* data, std::size_t bytes, int from) {
  Channel& c = channel(from, rank_);
  const auto [ring_data, size] = rings_[pair(from, rank_)];
  while (bytes > 0) {
    const std::uint32_t done = c.read.value();
    wait_for_ring(c.written, done + 1, from, "receive");
    const std::uint32_t ready = c.written.value() - done;
    const std::uint32_t at = done % size;
    const std::size_t n = std::min<std::size_t>({bytes, ready, size - at, size / 4, kTurnBytes});
    std::memcpy(data, ring_data + at, n);
    c.read.publish(done + static_cast<std::uint32_t>(n));
    data += n;
    bytes -= n;
  }
}

void Group::wait_for_ring(const Flag& flag, std::uint32_t position, int member, const char* call,
                          bool timed) {
  const int peer = members_[member];
  const Wait result = process_.wait(flag, position, peer, timed);
  if (result == Wait::finished)
    OSTRO_THROW(DeviceError, process_.describe(peer), " has finished while rank ", process_.rank(),
                " waits for it in ", call);
  if (result == Wait::stalled)
    OSTRO_THROW(DeviceError, call, " on rank ", process_.rank(), " waited ",
                process_.stall_seconds(), " s for ", process_.describe(peer));
}

}  // namespace

std::size_t GroupShape::bytes() const { return Layout(*this).end; }

void prepare_group(SharedMemory& memory, const GroupShape& shape, std::size_t offset) {
  std::byte* base = memory.at(offset);
  const auto n = static_cast<std::size_t>(shape.ranks);
  for (std::size_t i = 0; i < n; ++i) new (base + i * sizeof(Arrival)) Arrival;
  std::byte* channels = base + Layout(shape).channels;
  for (std::size_t i = 0; i < n * n; ++i) new (channels + i * sizeof(Channel)) Channel;
}

std::unique_ptr<Communicator> make_group(Process& process, const GroupShape& shape,
                                         std::size_t offset, std::vector<int> members, int rank) {
  OSTRO_CHECK(std::has_single_bit(shape.ring_bytes) && shape.ring_bytes <= kLargestRing &&
                  shape.slot_bytes >= 64 && shape.slot_bytes % 64 == 0,
              "slots of ", shape.slot_bytes, " bytes, rings of ", shape.ring_bytes);
  return std::make_unique<Group>(process, shape, offset, std::move(members), rank);
}

}  // namespace ostro::comm::local
