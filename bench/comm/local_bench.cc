#include <cstdio>
#include <cstdlib>

#include "comm/collectives_bench.h"
#include "comm/local/launch.h"

int main(int argc, char** argv) {
  using namespace ostro;
  const auto world = comm::local::start_ranks(argc > 1 ? std::atoi(argv[1]) : 2);
  comm::Outcome end;
  try {
    comm::time_collectives(world->communicator(), "local");
    end = world->finish(0, "");
  } catch (const Error& error) {
    end = world->finish(4, error.what());
  }
  if (!end.message.empty()) std::fprintf(stderr, "%s\n", end.message.c_str());
  return end.code;
}
