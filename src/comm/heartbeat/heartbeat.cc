#include "comm/heartbeat/heartbeat.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <optional>

#include "base/error.h"

namespace ostro::comm::heartbeat {
namespace {

using namespace std::chrono_literals;

// Messages: a beat and a farewell are one byte; a failure is followed by its exit code, the length
// of its text in two bytes, the lower first, and the text.
constexpr char kBeat = 'b';
constexpr char kFarewell = 'e';
constexpr char kFailure = 'f';
constexpr std::size_t kFailureHead = 4;
constexpr std::size_t kLongestText = 4096;

std::string failure_message(int code, const std::string& text) {
  const std::size_t size = std::min(text.size(), kLongestText);
  std::string message{kFailure, char(code), char(size & 255), char(size >> 8)};
  return message + text.substr(0, size);
}

std::string seconds(std::chrono::milliseconds time) {
  return text(double(time.count()) / 1000, " s");
}

}  // namespace

std::string describe(const Peer& peer) {
  return text("rank ", peer.rank, " on ", peer.host, " (pid ", peer.pid, ')');
}

Heartbeat::Heartbeat(const Peer& self, std::vector<Line> lines, const Options& options,
                     FirstFailure& failure)
    : self_(self), options_(options), failure_(failure) {
  for (Line& line : lines)
    watched_.push_back({.line = std::move(line), .heard = Clock::now(), .unread = {}});
  wake_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd_ < 0) OSTRO_THROW(DeviceError, "eventfd: ", system_error_text(errno));

  // Signals are the main thread's.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Heartbeat::~Heartbeat() {
  stop();
  ::close(wake_fd_);
}

bool Heartbeat::fail(int code, const std::string& text) {
  if (!failure_.set(code, text)) return false;
  tell(failure_message(code, text));
  return true;
}

void Heartbeat::stop() {
  if (!thread_.joinable()) return;
  stop_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_fd_, &one, sizeof(one));
  thread_.join();
  tell({kFarewell});
  const std::lock_guard lock(mutex_);
  for (Watched& w : watched_) w.line.socket = {};
}

void Heartbeat::wait_for_end_of_rank_0(std::chrono::milliseconds time) {
  const auto deadline = Clock::now() + time;
  while (!line_ended_ && Clock::now() < deadline) std::this_thread::sleep_for(20ms);
}

void Heartbeat::run() {
  const Clock::duration interval = options_.limit / 3;
  Clock::time_point next = Clock::now();
  std::optional<Clock::time_point> failed;
  while (!stop_) {
    if (Clock::now() >= next) {
      beat();
      next = Clock::now() + interval;
    }
    std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
    for (const Watched& w : watched_)  // poll() skips what is negative
      fds.push_back({w.open ? w.line.socket.fd() : -1, POLLIN, 0});
    const auto timeout = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now());
    ::poll(fds.data(), fds.size(), int(std::clamp<std::int64_t>(timeout.count(), 0, 500)));
    // First what has come, then who is silent: after this process itself has been stopped for a
    // while, the beats of the others are waiting here.
    for (std::size_t i = 0; i < watched_.size(); ++i)
      if (fds[i + 1].revents != 0) receive(watched_[i]);
    if (!failure_.is_set()) judge_silence();
    if (failure_.is_set() && !failed) failed = Clock::now();
    if (failed && !main_is_ending_ && Clock::now() - *failed > options_.grace) return end_process();
  }
}

void Heartbeat::beat() { tell({kBeat}); }

// A socket that takes no more belongs to a peer that has not read for long: its silence will tell.
void Heartbeat::tell(const std::string& message) {
  const std::lock_guard lock(mutex_);
  for (const Watched& w : watched_)
    if (w.open) ::send(w.line.socket.fd(), message.data(), message.size(), MSG_NOSIGNAL);
}

void Heartbeat::receive(Watched& w) {
  char buffer[4096];
  const ssize_t got = ::recv(w.line.socket.fd(), buffer, sizeof(buffer), 0);
  if (got > 0) {
    w.heard = Clock::now();
    w.unread.append(buffer, std::size_t(got));
    return take_messages(w);
  }
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got == 0 || errno == ECONNRESET) return lose(w, " is gone: it was killed or it crashed");
  lose(w, text(" cannot be reached any more: ", system_error_text(errno)));
}

void Heartbeat::take_messages(Watched& w) {
  while (w.open && !w.unread.empty()) {
    std::size_t bytes = 1;
    const char kind = w.unread[0];
    if (kind == kFailure) {
      if (w.unread.size() < kFailureHead) return;
      const auto byte = [&](std::size_t i) { return std::size_t(std::uint8_t(w.unread[i])); };
      bytes = kFailureHead + byte(2) + 256 * byte(3);
      if (w.unread.size() < bytes) return;
      const std::string told = w.unread.substr(kFailureHead, bytes - kFailureHead);
      if (failure_.set(w.unread[1], told) && self_.rank == 0) {
        options_.log.error(told);
        tell(failure_message(w.unread[1], told));
      }
    } else if (kind == kFarewell) {
      const std::lock_guard lock(mutex_);
      w.open = false;
      line_ended_ = true;
    } else if (kind != kBeat) {
      return lose(w, text(" sends byte ", int(kind), ", which is no heartbeat"));
    }
    w.unread.erase(0, bytes);
  }
}

void Heartbeat::lose(Watched& w, const std::string& how) {
  {
    const std::lock_guard lock(mutex_);
    w.open = false;
  }
  line_ended_ = true;
  find(Found::dead_rank, describe(w.line.peer) + how);
}

void Heartbeat::find(Found found, const std::string& text) {
  if (failure_.is_set()) return;
  found_ = found;  // before main sees the failure
  if (!failure_.set(4, text)) return;
  if (self_.rank != 0) return;
  options_.log.error(text);
  tell(failure_message(4, text));
}

void Heartbeat::judge_silence() {
  for (const Watched& w : watched_)
    if (w.open && Clock::now() - w.heard > options_.limit) return find_silent(w);
}

// Who else of its host is heard tells a stopped process from a host that is down or cut off.
void Heartbeat::find_silent(const Watched& silent) {
  const std::string& host = silent.line.peer.host;
  const std::string for_limit = " has been silent for " + seconds(options_.limit);
  std::string ranks;
  int of_host = 0;
  bool host_lives = host == self_.host;
  for (const Watched& w : watched_) {
    if (w.line.peer.host != host) continue;
    ++of_host;
    ranks += text(ranks.empty() ? "" : ", ", w.line.peer.rank);
    host_lives |= w.open && Clock::now() - w.heard < options_.limit / 2;
  }
  if (host_lives)
    return find(Found::dead_rank, describe(silent.line.peer) + for_limit +
                                      ", its host is not: it is stopped or hangs");
  if (of_host > 1)
    return find(Found::silent_host,
                text(host, " (ranks ", ranks, ')', for_limit,
                     ": it is down, or the network between it and ", self_.host, " is cut"));
  find(Found::silent_host, text(describe(silent.line.peer), for_limit,
                                ": it is stopped, its host is down, or the network between ", host,
                                " and ", self_.host, " is cut"));
}

void Heartbeat::end_process() {
  if (self_.rank != 0 && found_ != Found::nothing) options_.log.error(failure_.text());
  (options_.exit ? options_.exit : ::_exit)(failure_.code());
}

}  // namespace ostro::comm::heartbeat
