// What a layer's sum over ranks takes on GPUs, with the residual and norm behind it, over NCCL and
// in peer memory: bin/comm_nccl_bench [ranks]. 64 of them as one CUDA graph, as a decode step has.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "backends/cuda/backend.h"
#include "base/clock.h"
#include "comm/local/launch.h"
#include "comm/nccl/transport.h"
#include "ops/norm.h"

namespace ostro::comm {
namespace {

constexpr std::int64_t kHidden = 4096;
constexpr std::int64_t kMostRows = 8192;
constexpr int kCalls = 64, kRepeats = 15;

struct Memory {
  Buffer x, residual, weight, y;
};

double us_per_call(ops::Backend& gpu, Communicator& host, Communicator& group, const Memory& m,
                   std::int64_t rows) {
  const SumAddNorm op{.x = m.x.view(DType::f32, rows, kHidden),
                      .residual = m.residual.view(DType::f32, rows, kHidden),
                      .weight = m.weight.view(DType::bf16, 1, kHidden),
                      .y = m.y.view(DType::bf16, rows, kHidden),
                      .eps = 1e-5f};
  const auto calls = [&] {
    for (int i = 0; i < kCalls; ++i) {
      if (group.sum_add_norm(op)) continue;
      group.all_reduce_sum(op.x);
      gpu.run(ops::AddRmsNorm{op.x, op.residual, op.weight, op.y, op.eps});
    }
  };
  calls();
  gpu.wait();
  const auto recording = gpu.record(calls);
  std::vector<double> us;
  for (int i = 0; i < kRepeats; ++i) {
    host.barrier();
    const Stopwatch watch;
    gpu.replay(*recording);
    gpu.wait();
    us.push_back(watch.seconds() * 1e6 / kCalls);
  }
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

void run(World& world) {
  Communicator& host = world.communicator();
  const auto gpu = cuda::make_backend(host.rank());
  const Memory m{gpu->allocate(kMostRows * kHidden * 4), gpu->allocate(kMostRows * kHidden * 4),
                 gpu->allocate(kHidden * 2), gpu->allocate(kMostRows * kHidden * 2)};
  const nccl::Library library = nccl::load();
  if (host.rank() == 0)
    std::printf("%d ranks of %s, NCCL %s: us for a sum of [rows, %d] f32 with residual and norm\n",
                host.ranks(), gpu->description().c_str(),
                nccl::version_text(library.version).c_str(), int(kHidden));
  for (const auto use : {nccl::UsePeerMemory::never, nccl::UsePeerMemory::always}) {
    const auto transport = std::make_shared<nccl::Transport>(
        *gpu, library, nccl::Options{.rank = host.rank(), .peer_memory = use});
    const auto group = nccl::make_group(transport, host.split(0, host.rank()));
    group->connect(Traffic::collectives);
    if (host.rank() == 0)
      std::printf("%s", use == nccl::UsePeerMemory::never ? "NCCL       " : "peer memory");
    for (const std::int64_t rows : {1, 8, 32, 64, 128, 256, 512, 1024, 2048, 8192}) {
      const double us = us_per_call(*gpu, host, *group, m, rows);
      if (host.rank() == 0) std::printf("  %d: %.1f", int(rows), us);
    }
    if (host.rank() == 0) std::printf("\n");
  }
}

}  // namespace
}  // namespace ostro::comm

int main(int argc, char** argv) {
  using namespace ostro;
  const auto world = comm::local::start_ranks(argc > 1 ? std::atoi(argv[1]) : 2);
  comm::Outcome end;
  try {
    comm::run(*world);
    end = world->finish(0, "");
  } catch (const Error& error) {
    end = world->finish(4, error.what());
  }
  if (!end.message.empty()) std::fprintf(stderr, "%s\n", end.message.c_str());
  return end.code;
}
