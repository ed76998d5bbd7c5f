// Barriers in shared memory that also count bytes (PTX ISA, "mbarrier"), and the cluster's barrier.
//
// A barrier's phases have parities 0, 1, 0 ...; of a new one the phase before the first, parity 1,
// counts as complete.
#pragma once

#include <cstdint>

namespace ostro::cuda::ptx {

// A phase completes after `arrivals`, and when as many bytes have come as were expected.
__device__ inline void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes this thread's barrier_init visible to the cluster and to the bulk copy engine.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// At the barrier that stands at the same place in block `rank` of the cluster. What it orders is
// what this thread's wgmma has read and bulk copies write next; ordinary stores would need the
// cluster's scope, whose fences reach as far as L2.
__device__ inline void barrier_arrive(std::uint32_t barrier, int rank) {
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
      "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// An arrival that also announces bytes of bulk copies.
__device__ inline void barrier_arrive_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Until the phase of that parity is complete. For debugging, -DOSTRO_BOUNDED_WAITS traps after
// about a second instead of hanging the device; it slows the loops of wgmma kernels.
__device__ inline void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
#ifdef OSTRO_BOUNDED_WAITS
  const long long start = clock64();
#endif
  do {
    asm volatile(
        "{ .reg .pred done;"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;"
        "selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
#ifdef OSTRO_BOUNDED_WAITS
    if (clock64() - start > 2000000000ll) __trap();
#endif
  } while (!done);
}

// All threads of all blocks of the cluster.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}

}  // namespace ostro::cuda::ptx
