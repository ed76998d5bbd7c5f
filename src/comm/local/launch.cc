#include "comm/local/launch.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <numeric>
#include <vector>

#include "comm/local/group.h"
#include "comm/local/watcher.h"

namespace ostro::comm::local {
namespace {

class LocalWorld final : public World {
 public:
  // `children`: the process ids of ranks 1, 2 ...; rank 0 only.
  LocalWorld(std::unique_ptr<SharedMemory> memory, const GroupShape& shape, std::size_t offset,
             int rank, const std::vector<pid_t>& children, const Options& options)
      : memory_(std::move(memory)),
        process_(*memory_, rank, shape.ranks,
                 std::chrono::duration<double>(options.stall_seconds)) {
    std::vector<int> all(static_cast<std::size_t>(shape.ranks));
    std::iota(all.begin(), all.end(), 0);
    group_ = make_group(process_, shape, offset, std::move(all), rank);
    if (rank == 0) watcher_ = std::make_unique<Watcher>(*memory_, children, options.log);
  }

  ~LocalWorld() override {
    if (!finished_) finish(5, "ended without a result");
  }

  Communicator& communicator() override { return *group_; }
  int rank_on_this_host() const override { return process_.rank(); }
  int ranks_on_this_host() const override { return process_.ranks(); }

  Outcome finish(int code, std::string_view message) override {
    finished_ = true;
    const int rank = process_.rank();
    Failure& failure = memory_->header().failure;
    if (code == 0)
      memory_->header().ranks[rank].finished.store(true, std::memory_order_release);
    else if (!process_.knows_failure())
      failure.set(rank, code, text(process_.describe(rank), ": ", message));
    if (rank != 0) return {code, ""};

    watcher_->end_children();
    // Rank 0's own error is told in its own words, unless it is only the echo of another rank's.
    if (failure.is_set() && (code == 0 || process_.knows_failure()))
      return {failure.code(), failure.text()};
    return {code, std::string(message)};
  }

 private:
  std::unique_ptr<SharedMemory> memory_;
  Process process_;
  std::unique_ptr<Communicator> group_;
  std::unique_ptr<Watcher> watcher_;
  bool finished_ = false;
};

// What the child does first.
void follow(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The signal is sent when the parent dies, which it may have done before it was asked for.
  if (::getppid() != parent) ::_exit(4);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_IGN);
  if (const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC); null >= 0) {
    ::dup2(null, STDIN_FILENO);
    ::close(null);
  }
}

}  // namespace

std::unique_ptr<World> start_ranks(int ranks, const Options& options) {
  OSTRO_REQUIRE(1 <= ranks && ranks <= kMaxRanks, ranks, " ranks on this machine; it can be 1 to ",
                kMaxRanks);
  if (ranks == 1) return make_single_world();

  const GroupShape shape{
      .ranks = ranks, .slot_bytes = options.slot_bytes, .ring_bytes = options.ring_bytes};
  // The groups of one split() take together no more than one group of all ranks, give or take the
  // rounding to pages, for which another group is kept.
  auto memory =
      std::make_unique<SharedMemory>(shape.bytes() * static_cast<std::size_t>(2 + options.splits) +
                                     options.buffer_bytes * static_cast<std::size_t>(ranks));
  const std::size_t offset = memory->allocate(shape.bytes());
  prepare_group(*memory, shape, offset);

  std::fflush(nullptr);           // or each copy would write what is buffered once more
  std::signal(SIGCHLD, SIG_DFL);  // ignored, it would keep the children's fate from the watcher
  const pid_t parent = ::getpid();
  memory->header().ranks[0].pid = parent;
  std::vector<pid_t> children;
  for (int rank = 1; rank < ranks; ++rank) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      follow(parent);
      memory->header().ranks[rank].pid = ::getpid();
      return std::make_unique<LocalWorld>(std::move(memory), shape, offset, rank,
                                          std::vector<pid_t>{}, options);
    }
    if (pid < 0) {
      const int error = errno;
      for (const pid_t child : children) {
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
      }
      OSTRO_THROW(DeviceError, "rank ", rank, " of ", ranks,
                  " cannot be started: ", system_error_text(error));
    }
    memory->header().ranks[rank].pid = pid;
    children.push_back(pid);
  }
  return std::make_unique<LocalWorld>(std::move(memory), shape, offset, 0, children, options);
}

}  // namespace ostro::comm::local
