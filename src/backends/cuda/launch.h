// The only way to start a kernel, and the only way to call the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/error.h"

namespace ostro::cuda {

inline void check_cuda(cudaError_t status, const char* call, std::source_location where) {
  if (status != cudaSuccess) [[unlikely]]
    throw DeviceError(
        text(call, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ')'), where);
}

struct Grid {
  std::int64_t blocks = 0;
  int threads = 0;
  std::int64_t shared_bytes = 0;
  int cluster = 1;  // consecutive blocks that share their memory; divides `blocks`
};

// Enqueues kernel(args...) and throws DeviceError if the launch itself is refused; errors inside
// the kernel surface at the next wait(). The kernel may start before its predecessor has ended
// (programmatic dependent launch): it must call cudaGridDependencySynchronize() before it touches
// memory that any earlier kernel reads or writes.
template <class... Params, class... Args>
void launch(cudaStream_t stream, const Grid& grid, void (*kernel)(Params...), Args&&... args) {
  if (grid.blocks == 0) return;
  OSTRO_CHECK(grid.blocks <= 0x7fffffff, grid.blocks, " blocks in one launch");
  constexpr std::int64_t kSharedWithoutAsking = 48 << 10;
  if (grid.shared_bytes > kSharedWithoutAsking)
    check_cuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared_bytes)),
        "cudaFuncSetAttribute", std::source_location::current());
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = std::size_t(grid.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = grid.cluster > 1 ? 2 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "kernel launch",
             std::source_location::current());
}

}  // namespace ostro::cuda

#define OSTRO_CUDA(call) ::ostro::cuda::check_cuda((call), #call, std::source_location::current())
