// Runs a program of several local ranks as a child of the test, and looks at what is left of it.
#pragma once

#include <functional>
#include <string>

#include "comm/local/launch.h"

namespace ostro::comm::testing {

struct Ending {
  int code = 0;         // exit code, or -signal
  std::string message;  // of rank 0's Outcome
  std::string log;      // what went to Options::log
  double seconds = 0;
  bool none_left = false;  // no process of the program lives
};

// Every rank runs body; an Error that it throws is the rank's result, with the exit code of its
// kind, as in main.
Ending run_ranks(int ranks, const std::function<void(World&)>& body, local::Options options = {});

}  // namespace ostro::comm::testing
