#include "comm/local/run_ranks.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "base/clock.h"

namespace ostro::comm::testing {
namespace {

int code_of(const Error& error) {
  if (dynamic_cast<const InvalidArgument*>(&error)) return 2;
  if (dynamic_cast<const Unsupported*>(&error)) return 3;
  if (dynamic_cast<const DeviceError*>(&error)) return 4;
  return 5;
}

void write_all(int fd, std::string_view bytes) {
  [[maybe_unused]] const auto written = ::write(fd, bytes.data(), bytes.size());
}

std::string read_all(int fd) {
  std::string all;
  char buffer[4096];
  for (ssize_t n; (n = ::read(fd, buffer, sizeof(buffer))) > 0;) all.append(buffer, std::size_t(n));
  return all;
}

int main_of_program(int ranks, const std::function<void(World&)>& body, local::Options options,
                    int message_fd, int log_fd) {
  options.log = Log(LogLevel::error, [=](LogLevel, std::string_view line) {
    write_all(log_fd, std::string(line) + '\n');
  });
  const auto world = local::start_ranks(ranks, options);
  int code = 0;
  std::string message;
  try {
    body(*world);
  } catch (const Error& error) {
    code = code_of(error);
    message = error.what();
  }
  const Outcome end = world->finish(code, message);
  write_all(message_fd, end.message);
  return end.code;
}

}  // namespace

Ending run_ranks(int ranks, const std::function<void(World&)>& body, local::Options options) {
  int message[2], log[2];
  if (::pipe(message) != 0 || ::pipe(log) != 0) OSTRO_THROW(DeviceError, "no pipe");
  // Orphans become this process's to bury: the init of a container may not do it.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  const Stopwatch watch;
  const pid_t program = ::fork();
  if (program == 0) {
    ::setpgid(0, 0);  // all its processes are of one group, which is looked for below
    ::close(message[0]);
    ::close(log[0]);
    ::_exit(main_of_program(ranks, body, options, message[1], log[1]));
  }
  ::close(message[1]);
  ::close(log[1]);

  Ending ending;
  int status = 0;
  ::waitpid(program, &status, 0);
  ending.seconds = watch.seconds();
  ending.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  // Ranks orphaned by rank 0's death die with it, but need a moment.
  for (int i = 0; i < 100 && !ending.none_left; ++i) {
    while (::waitpid(-program, nullptr, WNOHANG) > 0) {
    }
    ending.none_left = ::kill(-program, 0) != 0 && errno == ESRCH;
    if (!ending.none_left) ::usleep(10'000);
  }
  if (!ending.none_left) ::kill(-program, SIGKILL);
  ending.message = read_all(message[0]);
  ending.log = read_all(log[0]);
  ::close(message[0]);
  ::close(log[0]);
  return ending;
}

}  // namespace ostro::comm::testing
