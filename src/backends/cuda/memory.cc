#include "backends/cuda/memory.h"

#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

void free_device(void* data, std::size_t) { cudaFree(data); }

}  // namespace

Buffer allocate_uninitialised(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this error does not stick
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    OSTRO_THROW(DeviceError, "no ", bytes, " bytes of device memory; ", free, " of ", total,
                " are free");
  }
  check_cuda(status, "cudaMalloc", std::source_location::current());
  return {data, bytes, Device::cuda, free_device};
}

Buffer allocate_device(std::size_t bytes, cudaStream_t stream) {
  Buffer buffer = allocate_uninitialised(bytes);
  if (bytes > 0) OSTRO_CUDA(cudaMemsetAsync(buffer.data(), 0, bytes, stream));
  return buffer;
}

void* Workspace::reserve_bytes(std::size_t bytes) {
  if (bytes > buffer_.bytes()) {
    buffer_ = {};  // before the new one is made: both might not fit; waits for the device
    buffer_ = allocate_uninitialised(bytes + bytes / 4);
    ++moves_;
  }
  return buffer_.data();
}

}  // namespace ostro::cuda
