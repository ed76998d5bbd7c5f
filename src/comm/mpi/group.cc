#include "comm/mpi/group.h"

#include <algorithm>

#include "comm/contract.h"
#include "comm/mpi/outbox.h"
#include "comm/mpi/status.h"
#include "comm/packed.h"
#include "comm/sum.h"
#include "tensor/buffer.h"

namespace ostro::comm::mpi {
namespace {

// Up to here every rank gets all data and sums by itself: one round of messages instead of two, for
// ranks - 1 times as much on the wire.
constexpr std::size_t kOneRoundBytes = std::size_t{32} << 10;

// Collectives move this much of a rank's data at a time, so that what has arrived is still in the
// second-level cache when it is summed.
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;

// The messages of collectives never match those of send and receive.
constexpr int kCollectiveTag = 1;
constexpr int kMessageTag = 2;

class Group final : public Communicator {
 public:
  Group(MPI_Comm comm, const WaitPolicy& policy)
      : comm_(comm), policy_(policy), exchange_(comm, policy) {
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(comm_, &ranks_), "MPI_Comm_size");
    staging_ = allocate_host(kPieceBytes * static_cast<std::size_t>(ranks_));
    parts_.resize(static_cast<std::size_t>(ranks_));
  }

  int rank() const override { return rank_; }
  int ranks() const override { return ranks_; }

  void all_reduce_sum(View data) override;
  void all_gather_columns(View part, View whole) override;
  void send(View data, int to) override;
  void receive(View data, int from) override;
  void wait_for_message(int from) override;
  void buffer_sends(int to, std::size_t bytes) override;
  void progress() override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  void barrier() override;
  void throw_if_failed() override { mpi::throw_if_failed(policy_); }
  std::unique_ptr<Communicator> split(int color, int key) override;

 private:
  void reduce_in_one_round(std::span<float> data);
  void reduce_in_two_rounds(std::span<float> data);

  // Calls visit(peer) for every other rank, beginning behind this one: at any time the ranks talk
  // to different peers.
  template <class Visit>
  void each_peer(Visit visit) const {
    for (int i = 1; i < ranks_; ++i) visit((rank_ + i) % ranks_);
  }

  // Where rank q's data arrive.
  std::byte* staging(int q) const {
    return static_cast<std::byte*>(staging_.data()) + static_cast<std::size_t>(q) * kPieceBytes;
  }

  MPI_Comm comm_;
  WaitPolicy policy_;
  Exchange exchange_;
  Buffer staging_;
  std::unique_ptr<Outbox> outbox_;  // to the rank that buffer_sends() named
  std::vector<const float*> parts_;
  int rank_ = 0;
  int ranks_ = 1;
};

void Group::all_reduce_sum(View data) {
  check_all_reduce_sum(data);
  std::span<float> rest(data.as<float>(), static_cast<std::size_t>(data.rows * data.cols));
  if (rest.size_bytes() <= kOneRoundBytes) return reduce_in_one_round(rest);
  while (!rest.empty()) {
    const std::size_t piece = std::min(rest.size(), kPieceBytes / sizeof(float));
    reduce_in_two_rounds(rest.first(piece));
    rest = rest.subspan(piece);
  }
}

void Group::reduce_in_one_round(std::span<float> data) {
  each_peer([&](int q) {
    exchange_.receive(staging(q), data.size_bytes(), q, kCollectiveTag);
    parts_[q] = reinterpret_cast<const float*>(staging(q));
  });
  each_peer([&](int q) { exchange_.send(data.data(), data.size_bytes(), q, kCollectiveTag); });
  exchange_.wait("all_reduce_sum");
  parts_[rank_] = data.data();
  sum_in_rank_order(parts_, data.data(), static_cast<std::int64_t>(data.size()));
}

// Round one: rank r gets everyone's part r, and sums it. Round two: the sums go to everyone.
void Group::reduce_in_two_rounds(std::span<float> data) {
  const auto n = static_cast<std::int64_t>(data.size());
  const auto part = [&](int q) {
    const Range range = part_of(n, q, ranks_);
    return data.subspan(static_cast<std::size_t>(range.begin),
                        static_cast<std::size_t>(range.size()));
  };
  const std::span<float> own = part(rank_);

  each_peer([&](int q) {
    exchange_.receive(staging(q), own.size_bytes(), q, kCollectiveTag);
    parts_[q] = reinterpret_cast<const float*>(staging(q));
  });
  each_peer(
      [&](int q) { exchange_.send(part(q).data(), part(q).size_bytes(), q, kCollectiveTag); });
  exchange_.wait("all_reduce_sum");
  parts_[rank_] = own.data();
  sum_in_rank_order(parts_, own.data(), static_cast<std::int64_t>(own.size()));

  each_peer(
      [&](int q) { exchange_.receive(part(q).data(), part(q).size_bytes(), q, kCollectiveTag); });
  each_peer([&](int q) { exchange_.send(own.data(), own.size_bytes(), q, kCollectiveTag); });
  exchange_.wait("all_reduce_sum");
}

void Group::all_gather_columns(View part, View whole) {
  check_all_gather_columns(part, whole, rank_, ranks_);
  const auto place = [&](int q) { return whole.cols_of(part_of(whole.cols, q, ranks_)); };
  std::size_t longest = 0;
  for (int q = 0; q < ranks_; ++q) longest = std::max(longest, place(q).bytes());
  // The piece of a part that begins at byte `begin` of its packed form.
  const auto piece = [](const View& v, std::size_t begin) {
    return std::min(kPieceBytes, v.bytes() - std::min(v.bytes(), begin));
  };

  copy(part, place(rank_));
  for (std::size_t begin = 0; begin < longest; begin += kPieceBytes) {
    each_peer([&](int q) {
      if (const std::size_t bytes = piece(place(q), begin))
        exchange_.receive(staging(q), bytes, q, kCollectiveTag);
    });
    if (const std::size_t bytes = piece(part, begin)) {
      pack(part, begin, bytes, staging(rank_));
      each_peer([&](int q) { exchange_.send(staging(rank_), bytes, q, kCollectiveTag); });
    }
    exchange_.wait("all_gather_columns");
    each_peer([&](int q) {
      if (const std::size_t bytes = piece(place(q), begin))
        unpack(staging(q), begin, bytes, place(q));
    });
  }
}

void Group::send(View data, int to) {
  check_message("send", data, to, rank_, ranks_);
  if (outbox_ && outbox_->to() == to && outbox_->send(data.data, data.bytes(), kMessageTag)) return;
  const auto* rest = static_cast<const std::byte*>(data.data);
  std::size_t bytes = data.bytes();
  do {
    const std::size_t piece = std::min(bytes, kLongestMessage);
    exchange_.send(rest, piece, to, kMessageTag);
    exchange_.wait("send");
    rest += piece;
    bytes -= piece;
  } while (bytes > 0);
}

void Group::receive(View data, int from) {
  check_message("receive", data, from, rank_, ranks_);
  auto* rest = static_cast<std::byte*>(data.data);
  std::size_t bytes = data.bytes();
  do {
    const std::size_t piece = std::min(bytes, kLongestMessage);
    exchange_.receive(rest, piece, from, kMessageTag);
    exchange_.wait("receive");
    rest += piece;
    bytes -= piece;
  } while (bytes > 0);
}

void Group::wait_for_message(int from) {
  check_peer("wait_for_message", from, rank_, ranks_);
  mpi::wait_for_message(comm_, from, kMessageTag, policy_);
}

void Group::buffer_sends(int to, std::size_t bytes) {
  check_peer("buffer_sends", to, rank_, ranks_);
  barrier();
  outbox_ = std::make_unique<Outbox>(comm_, to, bytes, policy_);
}

// Any test lets MPI work on all that is under way.
void Group::progress() {
  if (outbox_) outbox_->forget_sent();
}

void Group::broadcast(std::span<std::byte> bytes, int root) {
  check_root(root, ranks_);
  while (!bytes.empty()) {
    const std::span<std::byte> piece = bytes.first(std::min(bytes.size(), kLongestMessage));
    MPI_Request request;
    check(MPI_Ibcast(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, root, comm_, &request),
          "broadcast");
    wait_for(request, "broadcast", policy_);
    bytes = bytes.subspan(piece.size());
  }
}

void Group::barrier() {
  MPI_Request request;
  check(MPI_Ibarrier(comm_, &request), "barrier");
  wait_for(request, "barrier", policy_);
}

std::unique_ptr<Communicator> Group::split(int color, int key) {
  check_color(color);
  barrier();  // MPI_Comm_split spins: wait for the last rank in our own way
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, color, key, &part), "split");
  return make_group(part, policy_);
}

}  // namespace

std::unique_ptr<Communicator> make_group(MPI_Comm comm, const WaitPolicy& policy) {
  return std::make_unique<Group>(comm, policy);
}

}  // namespace ostro::comm::mpi
