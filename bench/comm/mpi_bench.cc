#include <cstdio>

#include "comm/collectives_bench.h"
#include "comm/mpi/join.h"

int main() {
  using namespace ostro;
  const Log log(LogLevel::error, [](LogLevel, std::string_view line) {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  });
  const auto world = comm::mpi::join({.log = log});
  try {
    comm::time_collectives(world->communicator(), "mpi");
  } catch (const Error& error) {
    return world->finish(4, error.what()).code;
  }
  return world->finish(0, "").code;
}
