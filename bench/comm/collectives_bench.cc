#include "comm/collectives_bench.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/clock.h"

namespace ostro::comm {
namespace {

template <class Call>
void time(Communicator& world, const char* transport, const char* name, std::size_t bytes,
          int repeats, Call call) {
  for (int i = 0; i < repeats / 10 + 1; ++i) call();
  std::vector<double> us;
  for (int i = 0; i < repeats; ++i) {
    world.barrier();
    const Stopwatch watch;
    call();
    us.push_back(watch.seconds() * 1e6);
  }
  std::sort(us.begin(), us.end());
  if (world.rank() == 0)
    std::printf("%-6s %d ranks  %-18s %8zu bytes  median %8.1f us  p90 %8.1f us\n", transport,
                world.ranks(), name, bytes, us[us.size() / 2], us[us.size() * 9 / 10]);
}

}  // namespace

void time_collectives(Communicator& world, const char* transport) {
  time(world, transport, "barrier", 0, 2000, [&] { world.barrier(); });
  for (const std::size_t kib : {4, 16, 32, 64, 256, 1024, 4096}) {
    std::vector<float> x(kib * 256, 1.0f);
    const View data = matrix(x.data(), DType::f32, 1, static_cast<std::int64_t>(x.size()));
    time(world, transport, "all_reduce_sum", data.bytes(), kib < 1024 ? 1000 : 100,
         [&] { world.all_reduce_sum(data); });
  }
  std::vector<float> x(std::size_t{1} << 20);
  const View whole = matrix(x.data(), DType::f32, 32, 1 << 15);
  const View part = whole.cols_of(part_of(whole.cols, world.rank(), world.ranks()));
  time(world, transport, "all_gather_columns", whole.bytes(), 100,
       [&] { world.all_gather_columns(part, whole); });

  // There and back between the first two ranks.
  for (const std::size_t kib : {16, 4096}) {
    const View message = matrix(x.data(), DType::u8, 1, static_cast<std::int64_t>(kib << 10));
    time(world, transport, "send and receive", message.bytes(), kib < 1024 ? 1000 : 100, [&] {
      if (world.rank() == 0) world.send(message, 1), world.receive(message, 1);
      if (world.rank() == 1) world.receive(message, 0), world.send(message, 0);
    });
  }
}

}  // namespace ostro::comm
