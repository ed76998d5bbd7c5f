#include "comm/local/watcher.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>

#include "base/error.h"

namespace ostro::comm::local {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// Together under the five seconds in which a failed program has to be gone.
constexpr auto kForMain = 3s;            // from a failure to rank 0's finish()
constexpr auto kForFailedChildren = 1s;  // from finish() to the children's end
// After success, the exit of a process that gives back hundreds of gigabytes.
constexpr auto kForChildren = 30s;
// How often a failure that comes without a death is looked for.
constexpr int kPollMs = 500;

// By number: the C library's wrappers are younger than some that Ostro runs on.
int pidfd_of(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

// Unlike kill(), never hits a stranger that got the number of a child already reaped.
void kill_process(int pidfd) { ::syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0); }

}  // namespace

Watcher::Watcher(SharedMemory& memory, const std::vector<pid_t>& pids, Log log)
    : memory_(memory), log_(std::move(log)) {
  for (std::size_t i = 0; i < pids.size(); ++i) {
    const int pidfd = pidfd_of(pids[i]);
    if (pidfd < 0)
      OSTRO_THROW(DeviceError, "rank ", i + 1, " (pid ", pids[i],
                  ") cannot be watched: ", system_error_text(errno));
    children_.push_back(std::make_unique<Child>(static_cast<int>(i) + 1, pids[i], pidfd));
  }
  wake_fd_ = ::eventfd(0, EFD_CLOEXEC);
  if (wake_fd_ < 0) OSTRO_THROW(DeviceError, "eventfd: ", system_error_text(errno));

  // Signals are the main thread's.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { watch(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watcher::~Watcher() {
  stop_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_fd_, &one, sizeof(one));
  thread_.join();
  for (const auto& child : children_) ::close(child->pidfd);
  ::close(wake_fd_);
}

void Watcher::end_children() {
  main_is_ending_ = true;
  const Failure& failure = memory_.header().failure;
  std::unique_lock lock(mutex_);
  auto deadline = Clock::now() + kForChildren;
  bool failed = false;
  while (any_living() && Clock::now() < deadline) {
    if (!failed && failure.is_set()) {
      failed = true;
      deadline = Clock::now() + kForFailedChildren;
    }
    ended_.wait_for(lock, 50ms);
  }
  for (const auto& child : children_)
    if (child->living)
      memory_.header().failure.set(child->rank, 4,
                                   text("rank ", child->rank, " (pid ", child->pid, ") is alive ",
                                        kForChildren.count(), " s after rank 0 has finished"));
  kill_living();
  ended_.wait(lock, [&] { return !any_living(); });
}

void Watcher::watch() {
  std::optional<Clock::time_point> failed;
  while (!stop_) {
    std::vector<pollfd> fds{{.fd = wake_fd_, .events = POLLIN, .revents = 0}};
    std::vector<Child*> polled;
    for (const auto& child : children_)
      if (child->living) {
        fds.push_back({.fd = child->pidfd, .events = POLLIN, .revents = 0});
        polled.push_back(child.get());
      }
    ::poll(fds.data(), fds.size(), kPollMs);
    for (std::size_t i = 0; i < polled.size(); ++i)
      if (fds[i + 1].revents != 0) reap(*polled[i]);

    if (!failed && memory_.header().failure.is_set()) failed = Clock::now();
    if (failed && !main_is_ending_ && Clock::now() - *failed > kForMain) exit_for_main();
  }
}

void Watcher::reap(Child& child) {
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED) < 0 && errno == EINTR) {
  }
  const std::string who = text("rank ", child.rank, " (pid ", child.pid, ')');
  const bool finished = memory_.header().ranks[child.rank].finished;
  Failure& failure = memory_.header().failure;
  failure.abandon(child.rank);
  if (info.si_code != CLD_EXITED) {
    const char* name = ::sigdescr_np(info.si_status);
    failure.set(
        child.rank, 4,
        text(who, " was killed by signal ", info.si_status, " (", name ? name : "unknown", ')'));
  } else if (info.si_status != 0) {
    const bool ours = 2 <= info.si_status && info.si_status <= 5;
    failure.set(child.rank, ours ? info.si_status : 4,
                text(who, " exited with code ", info.si_status));
  } else if (!finished) {
    failure.set(child.rank, 4, text(who, " exited in the middle of its work"));
  }
  const std::lock_guard lock(mutex_);
  child.living = false;
  ended_.notify_all();
}

void Watcher::kill_living() {
  for (const auto& child : children_)
    if (child->living) kill_process(child->pidfd);
}

bool Watcher::any_living() const {
  for (const auto& child : children_)
    if (child->living) return true;
  return false;
}

void Watcher::exit_for_main() {
  const Failure& failure = memory_.header().failure;
  log_.error(failure.text());
  kill_living();
  ::_exit(failure.code());
}

}  // namespace ostro::comm::local
