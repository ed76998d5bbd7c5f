#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#include "backends/cuda/kernels/sum_ranks.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/memory.h"
#include "base/clock.h"
#include "comm/contract.h"
#include "comm/nccl/peer_memory.h"
#include "comm/nccl/transport.h"
#include "ops/norm.h"

namespace ostro::comm::nccl {
namespace {

// Up to here every rank gets all data and sums by itself: one round instead of two, for ranks - 1
// times as much on the wire.
constexpr std::size_t kOneRoundBytes = std::size_t{256} << 10;

// Where data of others arrive before they are summed or put in place; larger calls go in pieces.
constexpr std::size_t kScratchBytes = std::size_t{32} << 20;

// The end of a group is an agreement of its ranks; one that has ended badly does not come.
constexpr double kFarewellSeconds = 5;

bool on_host(const View& view) { return view.device == Device::cpu; }

class Group final : public Communicator, private Watch::Member {
 public:
  Group(std::shared_ptr<Transport> transport, std::unique_ptr<Communicator> host);
  ~Group() override;

  int rank() const override { return host_->rank(); }
  int ranks() const override { return host_->ranks(); }

  void connect(Traffic) override;
  void all_reduce_sum(View data) override;
  bool sum_add_norm(const SumAddNorm&) override;
  void all_gather_columns(View part, View whole) override;
  void send(View data, int to) override;
  void receive(View data, int from) override;
  bool enqueues() const override { return true; }

  void wait_for_message(int from) override { host_->wait_for_message(from); }
  void buffer_sends(int to, std::size_t bytes) override { host_->buffer_sends(to, bytes); }
  void progress() override { host_->progress(); }
  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  void barrier() override { host_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_group(transport_, host_->split(color, key));
  }

  void throw_if_failed() override;
  void abort() noexcept override;

 private:
  const Library& library() const { return transport_->library(); }
  cudaStream_t stream() const { return transport_->queue().stream; }
  std::byte* scratch() const { return static_cast<std::byte*>(scratch_.data()); }

  void start();
  void name_members();
  bool finalized();
  void open_peer_memory();
  void close_peer_memory() noexcept;

  // Calls enqueue(), which returns a Result, as the call `name` of `bytes`.
  template <class Enqueue>
  void call(const char* name, std::size_t bytes, Enqueue enqueue);
  // The same for what enqueues kernels of Ostro's own.
  template <class Enqueue>
  void call_peers(const char* name, const View& data, Enqueue enqueue);
  void settle(Result result, const char* name);
  Result state(const char* name) const;
  [[noreturn]] void fail(Result result, const char* name) const;

  // Calls exchange(peer), which returns a Result, for every other rank between the two ends of an
  // NCCL group.
  template <class Exchange>
  Result with_each_peer(Exchange exchange) const;

  void reduce_in_one_round(float* data, std::size_t n);
  void reduce_in_two_rounds(float* data, std::int64_t n);
  void gather_rows(const View& part, const View& whole);

  std::shared_ptr<Transport> transport_;
  std::unique_ptr<Communicator> host_;
  Comm comm_ = nullptr;
  std::unique_ptr<PeerMemory> peers_;
  Buffer scratch_;
  std::string members_;  // "ranks 0, 1"
  std::string sums_;     // how they are made, for the log
};

// ---- life

Group::Group(std::shared_ptr<Transport> transport, std::unique_ptr<Communicator> host)
    : transport_(std::move(transport)), host_(std::move(host)) {
  OSTRO_CHECK(ranks() > 1, "a group of ", ranks(), " rank over NCCL");
  OSTRO_CUDA(cudaSetDevice(transport_->queue().device));
  name_members();
  scratch_ = cuda::allocate_uninitialised(kScratchBytes);
  try {
    start();
  } catch (...) {
    abort();
    throw;
  }
  transport_->watch().add(*this);
}

Group::~Group() {
  transport_->watch().remove(*this);
  if (comm_ && std::uncaught_exceptions() == 0 && finalized()) {
    library().CommDestroy(std::exchange(comm_, nullptr));
    close_peer_memory();
  }
  abort();
}

void Group::name_members() {
  std::vector<std::int32_t> of_all(static_cast<std::size_t>(ranks()));
  std::int32_t mine = transport_->rank();
  host_->all_gather_columns(matrix(&mine, DType::i32, 1, 1),
                            matrix(of_all.data(), DType::i32, 1, ranks()));
  for (const std::int32_t member : of_all)
    members_ += text(members_.empty() ? "ranks " : ", ", member);
}

void Group::start() {
  constexpr const char* kName = "the start of a group";
  UniqueId id{};
  if (rank() == 0)
    if (const Result r = library().GetUniqueId(&id); r != kSuccess) fail(r, "ncclGetUniqueId");
  host_->broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
  Config config;
  config.blocking = 0;
  settle(library().CommInitRankConfig(&comm_, ranks(), id, rank(), &config), kName);
}

// Whether the ranks have agreed to end the group.
bool Group::finalized() {
  try {
    Result result = library().CommFinalize(comm_);
    const Stopwatch watch;
    while (result == kInProgress && watch.seconds() < kFarewellSeconds) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      host_->throw_if_failed();
      result = state("the end of a group");
    }
    return result == kSuccess;
  } catch (const Error&) {
    return false;  // another rank has failed, which is told elsewhere
  }
}

void Group::abort() noexcept {
  if (peers_) peers_->stop();
  if (comm_) library().CommAbort(std::exchange(comm_, nullptr));
}

// Calls NCCL as steps will, since it makes connections and their buffers at the first call of a
// kind and size.
void Group::connect(Traffic traffic) {
  constexpr std::int64_t kMostElements = 2 << 20;
  constexpr std::int64_t kColumns = 1024;
  const Buffer memory = cuda::allocate_device(std::size_t(kMostElements) * sizeof(float), stream());
  if (traffic == Traffic::neighbours) {
    const View message = memory.view(DType::f32, 1, kMostElements);
    if (rank() > 0) receive(message, rank() - 1);
    if (rank() + 1 < ranks()) send(message, rank() + 1);
  } else {
    for (std::int64_t n = kColumns; n <= kMostElements; n *= 2)
      all_reduce_sum(memory.view(DType::f32, n / kColumns, kColumns));
    const View whole = memory.view(DType::f32, 1, kMostElements);
    all_gather_columns(whole.cols_of(part_of(kMostElements, rank(), ranks())), whole);
  }
  transport_->wait();
  if (traffic == Traffic::collectives) open_peer_memory();
  if (rank() == 0)
    transport_->log().info(members_, " talk over NCCL ", version_text(library().version), sums_);
}

void Group::open_peer_memory() {
  const UsePeerMemory use = transport_->peer_memory();
  std::string why = "--comm nccl";
  if (use != UsePeerMemory::never) peers_ = PeerMemory::open(*host_, transport_->queue(), why);
  OSTRO_SUPPORTED(peers_ || use != UsePeerMemory::always, members_,
                  " cannot write to each other's memory (--comm peer): ", why);
  sums_ = peers_ ? ", and sum in each other's memory" : ", sums too: " + why;
}

void Group::close_peer_memory() noexcept {
  try {
    if (peers_) peers_->close(*host_);
  } catch (const Error&) {
    // Another rank has failed, which is told elsewhere.
  }
}

// ---- errors

void Group::fail(Result result, const char* name) const {
  const char* const last = library().GetLastError(comm_);
  OSTRO_THROW(DeviceError, name, " of ", members_, ": NCCL ", version_text(library().version), ": ",
              library().GetErrorString(result), last && *last ? text(" (", last, ')') : "");
}

Result Group::state(const char* name) const {
  Result now = kSuccess;
  if (const Result r = library().CommGetAsyncError(comm_, &now); r != kSuccess) fail(r, name);
  return now;
}

void Group::throw_if_failed() {
  host_->throw_if_failed();
  if (!comm_) return;
  const Result now = state("a collective");
  if (now != kSuccess && now != kInProgress) fail(now, "a collective");
}

// A group that does not block goes on by itself for as long as it makes connections.
void Group::settle(Result result, const char* name) {
  const Stopwatch watch;
  while (result == kInProgress) {
    host_->throw_if_failed();
    const double limit = transport_->watch().stall_seconds();
    if (watch.seconds() > limit)
      OSTRO_THROW(DeviceError, name, " of ", members_, " has not come about on rank ",
                  transport_->rank(), " after ", limit, " s (--comm_timeout)");
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    result = state(name);
  }
  if (result != kSuccess) fail(result, name);
}

template <class Enqueue>
void Group::call(const char* name, std::size_t bytes, Enqueue enqueue) {
  OSTRO_CHECK(comm_, name, " of ", members_, " after the group has failed");
  OSTRO_CUDA(cudaSetDevice(transport_->queue().device));
  settle(enqueue(), name);
  if (!transport_->recording())
    transport_->watch().called({.name = name, .bytes = bytes, .group = &members_});
}

template <class Enqueue>
void Group::call_peers(const char* name, const View& data, Enqueue enqueue) {
  OSTRO_CHECK(comm_, name, " of ", members_, " after the group has failed");
  OSTRO_CUDA(cudaSetDevice(transport_->queue().device));
  enqueue(stream(), peers_->peers(), cuda::peer_sum_in_two_rounds(ranks(), data.rows * data.cols));
  if (!transport_->recording())
    transport_->watch().called({.name = name, .bytes = data.bytes(), .group = &members_});
}

template <class Exchange>
Result Group::with_each_peer(Exchange exchange) const {
  const auto bad = [](Result r) { return r != kSuccess && r != kInProgress; };
  Result first = library().GroupStart();
  for (int i = 1; i < ranks() && !bad(first); ++i) first = exchange((rank() + i) % ranks());
  const Result end = library().GroupEnd();
  return bad(first) ? first : end;
}

// ---- calls

void Group::all_reduce_sum(View data) {
  if (on_host(data)) return host_->all_reduce_sum(data);
  OSTRO_CHECK(data.dtype == DType::f32 && data.contiguous(), "all_reduce_sum of ", describe(data),
              " with row stride ", data.row_stride);
  const std::int64_t n = data.rows * data.cols;
  if (n == 0) return;
  if (peers_ && cuda::peer_sum_takes(data))
    return call_peers("all_reduce_sum", data, [&](auto stream, const auto& peers, bool two) {
      cuda::peer_sum(stream, peers, data, two);
    });
  float* const x = data.as<float>();
  if (ranks() == 2)
    return call("all_reduce_sum", data.bytes(), [&] {
      return library().AllReduce(x, x, std::size_t(n), kFloat32, kSum, comm_, stream());
    });
  if (data.bytes() <= kOneRoundBytes) return reduce_in_one_round(x, std::size_t(n));
  // As many as the scratch memory holds of equal parts: no rank's part is rounded up beyond it.
  const std::int64_t piece = std::int64_t(kScratchBytes / sizeof(float)) / ranks() * ranks();
  for (std::int64_t at = 0; at < n; at += piece)
    reduce_in_two_rounds(x + at, std::min(piece, n - at));
}

bool Group::sum_add_norm(const SumAddNorm& op) {
  if (!peers_ || on_host(op.x) || op.x.rows == 0) return false;
  const cuda::PeerSumNorm sum{op.x, op.residual, op.weight, op.y, op.eps};
  if (!cuda::peer_sum_norm_takes(sum)) return false;
  ops::check(ops::AddRmsNorm{op.x, op.residual, op.weight, op.y, op.eps});
  call_peers("sum_add_norm", op.x, [&](auto stream, const auto& peers, bool two) {
    cuda::peer_sum_norm(stream, peers, sum, two);
  });
  return true;
}

void Group::reduce_in_one_round(float* data, std::size_t n) {
  auto* const parts = reinterpret_cast<float*>(scratch());
  call("all_reduce_sum", n * sizeof(float),
       [&] { return library().AllGather(data, parts, n, kFloat32, comm_, stream()); });
  cuda::sum_ranks(stream(), parts, data, rank(), ranks(), data, std::int64_t(n));
}

// Round one: rank r gets everyone's part r, and sums it. Round two: the sums go to everyone.
void Group::reduce_in_two_rounds(float* data, std::int64_t n) {
  const std::size_t bytes = std::size_t(n) * sizeof(float);
  const Range own = part_of(n, rank(), ranks());
  auto* const parts = reinterpret_cast<float*>(scratch());
  const auto send = [&](Range part, int to) {
    return library().Send(data + part.begin, std::size_t(part.size()), kFloat32, to, comm_,
                          stream());
  };
  const auto receive = [&](float* at, Range part, int from) {
    return library().Recv(at, std::size_t(part.size()), kFloat32, from, comm_, stream());
  };
  call("all_reduce_sum", bytes, [&] {
    return with_each_peer([&](int q) {
      const Result r = send(part_of(n, q, ranks()), q);
      return r == kSuccess ? receive(parts + q * own.size(), own, q) : r;
    });
  });
  cuda::sum_ranks(stream(), parts, data + own.begin, rank(), ranks(), data + own.begin, own.size());
  call("all_reduce_sum", bytes, [&] {
    return with_each_peer([&](int q) {
      const Range part = part_of(n, q, ranks());
      const Result r = send(own, q);
      return r == kSuccess ? receive(data + part.begin, part, q) : r;
    });
  });
}

void Group::all_gather_columns(View part, View whole) {
  if (on_host(whole)) return host_->all_gather_columns(part, whole);
  OSTRO_CHECK(!on_host(part) && whole.contiguous() && part.dtype == whole.dtype &&
                  part.rows == whole.rows &&
                  part.cols == part_of(whole.cols, rank(), ranks()).size(),
              "all_gather_columns of ", describe(part), " as part ", rank(), " of ", ranks(),
              " of ", describe(whole), " with row stride ", whole.row_stride);
  if (whole.bytes() == 0) return;
  const std::int64_t row_bytes = whole.cols * std::int64_t(size_of(whole.dtype));
  const std::int64_t piece = std::int64_t(kScratchBytes) / row_bytes;
  OSTRO_CHECK(piece > 0, "all_gather_columns into rows of ", row_bytes, " bytes");
  for (std::int64_t at = 0; at < whole.rows; at += piece) {
    const Range rows{at, std::min(at + piece, whole.rows)};
    gather_rows(part.rows_of(rows), whole.rows_of(rows));
  }
}

// Each rank's columns are packed, sent to all, and put in their place.
void Group::gather_rows(const View& part, const View& whole) {
  const std::size_t size = size_of(whole.dtype);
  const auto columns = [&](int q) { return part_of(whole.cols, q, ranks()); };
  const auto packed = [&](int q) {
    return scratch() + std::size_t(whole.rows * columns(q).begin) * size;
  };
  const auto bytes = [&](int q) { return std::size_t(whole.rows * columns(q).size()) * size; };
  const auto copy = [&](void* to, std::int64_t to_stride, const void* from,
                        std::int64_t from_stride, int q) {
    if (bytes(q) > 0)
      OSTRO_CUDA(cudaMemcpy2DAsync(to, std::size_t(to_stride) * size, from,
                                   std::size_t(from_stride) * size,
                                   std::size_t(columns(q).size()) * size, std::size_t(whole.rows),
                                   cudaMemcpyDeviceToDevice, stream()));
  };
  OSTRO_CUDA(cudaSetDevice(transport_->queue().device));
  copy(packed(rank()), part.cols, part.data, part.row_stride, rank());
  call("all_gather_columns", whole.bytes(), [&] {
    return with_each_peer([&](int q) {
      const Result r = library().Send(packed(rank()), bytes(rank()), kUint8, q, comm_, stream());
      return r == kSuccess ? library().Recv(packed(q), bytes(q), kUint8, q, comm_, stream()) : r;
    });
  });
  for (int q = 0; q < ranks(); ++q)
    copy(whole.cols_of(columns(q)).data, whole.cols, packed(q), columns(q).size(), q);
}

void Group::send(View data, int to) {
  if (on_host(data)) return host_->send(data, to);
  check_peer("send", to, rank(), ranks());
  OSTRO_CHECK(data.contiguous(), "send of ", describe(data), " with row stride ", data.row_stride);
  if (data.bytes() == 0) return;
  call("send", data.bytes(),
       [&] { return library().Send(data.data, data.bytes(), kUint8, to, comm_, stream()); });
}

void Group::receive(View data, int from) {
  if (on_host(data)) return host_->receive(data, from);
  check_peer("receive", from, rank(), ranks());
  OSTRO_CHECK(data.contiguous(), "receive of ", describe(data), " with row stride ",
              data.row_stride);
  if (data.bytes() == 0) return;
  call("receive", data.bytes(),
       [&] { return library().Recv(data.data, data.bytes(), kUint8, from, comm_, stream()); });
}

}  // namespace

std::unique_ptr<Communicator> make_group(std::shared_ptr<Transport> transport,
                                         std::unique_ptr<Communicator> host) {
  return std::make_unique<Group>(std::move(transport), std::move(host));
}

}  // namespace ostro::comm::nccl
