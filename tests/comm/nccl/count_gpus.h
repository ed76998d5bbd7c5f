// How many GPUs a test of ranks may use.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "backends/cuda/backend.h"

namespace ostro::comm::testing {

// In a process of its own: one that has asked CUDA anything cannot fork ranks that use it.
inline int count_gpus() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(std::min(cuda::device_count(), 100));
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

}  // namespace ostro::comm::testing
