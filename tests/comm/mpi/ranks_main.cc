// A program of MPI ranks for join_test: what its argument says happens on the last rank.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <ctime>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/collectives.h"
#include "comm/mpi/join.h"
#include "comm/mpi_launch.h"

namespace ostro::comm::testing {
namespace {

using namespace std::chrono_literals;

void reduce_for_ever(Communicator& all) {
  std::vector<float> x(100'000);
  while (true) all.all_reduce_sum(matrix(x.data(), DType::f32, 1, 100'000));
}

// 2^31 + 5 bytes: more than an int counts, and more than one message.
void send_more_than_an_int_counts(Communicator& all) {
  constexpr std::int64_t kBytes = (std::int64_t{1} << 31) + 5;
  std::vector<std::uint8_t> x(static_cast<std::size_t>(kBytes));
  const View view = matrix(x.data(), DType::u8, 1, kBytes);
  if (all.rank() == 0) {
    x.back() = 7;
    x[1u << 30] = 9;
    all.send(view, 1);
  } else if (all.rank() == 1) {
    all.receive(view, 0);
    OSTRO_CHECK(x.back() == 7 && x[1u << 30] == 9, "the end is ", int(x.back()));
  }
}

void wait_for_work(Communicator& all) {
  std::byte plan[64];
  const std::clock_t before = std::clock();
  if (all.rank() == 0) std::this_thread::sleep_for(2s);
  all.broadcast(plan, 0);
  const double used = double(std::clock() - before) / CLOCKS_PER_SEC;
  OSTRO_CHECK(used < 0.1, "two seconds of waiting took ", used, " s of a core");
}

void run(std::string_view what, World& world) {
  Communicator& all = world.communicator();
  const bool last = all.rank() == all.ranks() - 1;
  const MpiLaunch launch = mpi_launch().value();
  OSTRO_CHECK(launch.rank == all.rank() && launch.ranks == all.ranks() &&
                  launch.ranks_on_this_host == world.ranks_on_this_host() &&
                  launch.rank_on_this_host == world.rank_on_this_host(),
              "the environment says rank ", launch.rank, " of ", launch.ranks);
  if (what == "collectives") return check_collectives(all);
  if (what == "idle") return wait_for_work(all);
  if (what == "long") return send_more_than_an_int_counts(all);
  if (what == "all_fail") OSTRO_THROW(InvalidArgument, "there is no engine in x");
  if (last && what == "fail") OSTRO_THROW(Unsupported, "layer ", 7, " is missing");
  if (last && what == "die") ::raise(SIGKILL);
  if (last && what == "stop") std::this_thread::sleep_for(60s);
  reduce_for_ever(all);
}

int main_of_rank(std::string_view what) {
  const Log log(LogLevel::error, [](LogLevel, std::string_view line) {
    std::fprintf(stderr, "%.*s\n", int(line.size()), line.data());
  });
  const auto world = mpi::join({.stall_seconds = what == "stop" ? 0.5 : 300, .log = log});
  try {
    run(what, *world);
  } catch (const InvalidArgument& error) {
    return world->finish(2, error.what()).code;
  } catch (const Unsupported& error) {
    return world->finish(3, error.what()).code;
  } catch (const DeviceError& error) {
    return world->finish(4, error.what()).code;
  } catch (const InternalError& error) {
    return world->finish(5, error.what()).code;
  }
  return world->finish(0, "").code;
}

}  // namespace
}  // namespace ostro::comm::testing

int main(int, char** argv) { return ostro::comm::testing::main_of_rank(argv[1]); }
