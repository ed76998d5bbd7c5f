#include "cli/leave.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "guide/compiler.h"

namespace ostro::cli {

int leave(int code) {
  if (guide::threads_at_work() == 0) return code;
  std::cout.flush();
  std::fflush(nullptr);
  std::_Exit(code);
}

}  // namespace ostro::cli
