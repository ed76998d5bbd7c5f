#include "comm/mpi/join.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "base/host.h"
#include "comm/mpi/group.h"
#include "comm/mpi/start_heartbeat.h"
#include "comm/mpi/status.h"
#include "comm/mpi_launch.h"

namespace ostro::comm::mpi {
namespace {

using namespace std::chrono_literals;

// A message between ranks that work in step takes less; see kSpin of comm/local.
constexpr std::chrono::nanoseconds kSpin = 5us;

bool oversubscribed(int ranks_on_this_host) {
  // Not the affinity mask: mpirun binds each of few ranks to a core of its own.
  return ranks_on_this_host > ::sysconf(_SC_NPROCESSORS_ONLN);
}

// Settings of Open MPI that suit Ostro; what the user has set in the environment stays.
void set_defaults(const MpiLaunch& launch) {
  const auto set = [](const char* name, const char* value) { ::setenv(name, value, 0); };
  // The calls of MPI that wait by themselves (MPI_Init, MPI_Comm_split, MPI_Finalize) spin; this
  // makes them leave the core to the rank that they wait for.
  if (oversubscribed(launch.ranks_on_this_host)) set("OMPI_MCA_mpi_yield_when_idle", "1");
  // On one host, looking for a network takes longer than all else: MPI_Init of two ranks takes 280
  // ms with it and 60 ms without.
  if (launch.one_host) set("OMPI_MCA_pml", "ob1");
  // Inside a host, what all_reduce_sum sends in one round (32 KiB) goes through a shared buffer
  // without a handshake. By default that ends at 4 KiB, and above it each message costs a system
  // call on a virtual machine: 16 KiB over two ranks took 15.3 us and take 3.7 us.
  set("OMPI_MCA_btl_vader_eager_limit", "36864");
  set("OMPI_MCA_btl_vader_max_send_size", "36864");
}

// MPI_Init and what Ostro needs of it.
void init(const MpiLaunch& launch) {
  set_defaults(launch);
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  if (provided < MPI_THREAD_SERIALIZED)
    OSTRO_THROW(DeviceError, "this MPI supports thread level ", provided,
                "; Ostro needs MPI_THREAD_SERIALIZED (", MPI_THREAD_SERIALIZED, ')');
}

class MpiWorld final : public World {
 public:
  explicit MpiWorld(const Options& options) : options_(options) {
    init(mpi_launch().value_or(MpiLaunch{}));
    MPI_Comm host = MPI_COMM_NULL;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
          "MPI_Comm_split_type");
    check(MPI_Comm_rank(host, &rank_on_this_host_), "MPI_Comm_rank");
    check(MPI_Comm_size(host, &ranks_on_this_host_), "MPI_Comm_size");
    check(MPI_Comm_free(&host), "MPI_Comm_free");

    MPI_Comm all = MPI_COMM_NULL;
    check(MPI_Comm_dup(MPI_COMM_WORLD, &all), "MPI_Comm_dup");
    group_ = make_group(all, {.spin = oversubscribed(ranks_on_this_host_) ? 0ns : kSpin,
                              .stall = std::chrono::duration<double>(options.stall_seconds),
                              .failure = &failure_});
    const int rank = group_->rank();
    who_ = text("rank ", rank, " on ", host_name());
    if (options.peer_timeout_seconds == 0 || group_->ranks() == 1) return;
    try {
      heartbeat_ = start_heartbeat(*group_, ranks_on_this_host_, options, failure_);
    } catch (const Error& error) {
      abort(dynamic_cast<const InvalidArgument*>(&error) ? 2 : 4, error.what());
    }
  }

  ~MpiWorld() override {
    if (!finished_) finish(5, "ended without a result");
  }

  Communicator& communicator() override { return *group_; }
  int rank_on_this_host() const override { return rank_on_this_host_; }
  int ranks_on_this_host() const override { return ranks_on_this_host_; }

  Outcome finish(int code, std::string_view message) override {
    finished_ = true;
    if (code != 0) abort(code, message);
    try {
      group_->barrier();  // MPI_Finalize spins until the last rank comes
      if (heartbeat_) heartbeat_->stop();
      check(MPI_Finalize(), "MPI_Finalize");
    } catch (const Error& error) {
      abort(4, error.what());
    }
    return {};
  }

 private:
  [[noreturn]] void abort(int code, std::string_view message) {
    using heartbeat::Found;
    if (heartbeat_) heartbeat_->leave_the_end_to_main();
    const int rank = group_->rank();
    const std::string told = rank == 0 ? std::string(message) : text(who_, ": ", message);
    const bool own = heartbeat_ ? heartbeat_->fail(code, told) : failure_.set(code, told);
    const Found found = own || !heartbeat_ ? Found::nothing : heartbeat_->found();
    // What rank 0 finds is logged already, and what others say to it, too.
    if (rank == 0 ? own : !heartbeat_ || found != Found::nothing) say(failure_.text());

    if (found == Found::silent_host)
      std::this_thread::sleep_for(kForMpirun);
    else if (rank != 0 && heartbeat_)
      heartbeat_->wait_for_end_of_rank_0(kForRank0);
    else
      std::this_thread::sleep_for(kForTheLine);
    ::alarm(kForMpiAbort);
    MPI_Abort(MPI_COMM_WORLD, failure_.code());
    std::_Exit(failure_.code());
  }

  void say(const std::string& line) const {
    // Time for a lower rank that has found the same to end this one before it repeats it.
    const int rank = group_->rank();
    if (rank > 0) std::this_thread::sleep_for(rank == 1 ? 300ms : 4000ms);
    options_.log.error(line);
  }

  // To be forwarded before what mpirun has to say of the abort.
  static constexpr auto kForTheLine = 200ms;
  // Rank 0 ends all when its clients have been told.
  static constexpr auto kForRank0 = 4s;
  // An mpirun whose keep-alive notices that a host is out of reach ends all by itself. One that is
  // told first waits for that host's answer: the order to end is then on its way, and TCP sends no
  // keep-alive while data are (docs/multi-node.md).
  static constexpr auto kForMpirun = 5s;
  static constexpr unsigned kForMpiAbort = 5;  // seconds

  const Options options_;
  heartbeat::FirstFailure failure_;
  std::string who_;
  std::unique_ptr<Communicator> group_;
  std::unique_ptr<heartbeat::Heartbeat> heartbeat_;
  int rank_on_this_host_ = 0;
  int ranks_on_this_host_ = 1;
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<World> join(const Options& options) { return std::make_unique<MpiWorld>(options); }

}  // namespace ostro::comm::mpi
