#include "comm/nccl/transport.h"

#include <cstdlib>
#include <utility>

#include "backends/cuda/launch.h"

namespace ostro::comm::nccl {

Transport::Transport(ops::Backend& gpu, Library library, const Options& options)
    : gpu_(gpu),
      library_(std::move(library)),
      queue_(cuda::queue_of(gpu)),
      options_(options),
      events_(Watch::kSlots),
      watch_(options.rank, options.stall_seconds, marks()) {
  ::setenv("NCCL_NVLS_ENABLE", "0", 1);
  ::setenv("NCCL_GRAPH_REGISTER", "0", 0);
  OSTRO_CUDA(cudaSetDevice(queue_.device));
  cuda::while_waiting(gpu_, [this](double seconds) { watch_.turn(seconds); });
}

Transport::~Transport() {
  cuda::while_waiting(gpu_, {});
  for (const cudaEvent_t event : events_)
    if (event) cudaEventDestroy(event);
}

bool Transport::recording() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  OSTRO_CUDA(cudaStreamIsCapturing(queue_.stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

Watch::Marks Transport::marks() {
  return {
      .set =
          [this](std::size_t slot) {
            cudaEvent_t& event = events_[slot];
            if (!event) OSTRO_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
            OSTRO_CUDA(cudaEventRecord(event, queue_.stream));
          },
      .passed =
          [this](std::size_t slot) { return cudaEventQuery(events_[slot]) != cudaErrorNotReady; }};
}

}  // namespace ostro::comm::nccl
