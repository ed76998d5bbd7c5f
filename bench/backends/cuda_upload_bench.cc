// How fast memory of the host reaches a GPU: pinned, as the bus allows; pageable; and pages of a
// file in the page cache that this process has not mapped yet, as an engine is loaded.
//
//   cuda_upload_bench [folder for a file of 4 GiB, default /dev/shm]
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "backends/cuda/backend.h"
#include "backends/cuda/launch.h"
#include "base/clock.h"
#include "base/file.h"

namespace {

using namespace ostro;

constexpr std::size_t kBytes = std::size_t{4} << 30, kPinned = std::size_t{256} << 20;
constexpr int kPasses = 3;

// Prints the rate of each pass: the first one pays for what is made on first use.
template <class Upload>
void report(const char* what, std::size_t bytes, Upload&& upload) {
  std::printf("%-10s GB/s:", what);
  for (int pass = 0; pass < kPasses; ++pass) {
    const Stopwatch watch;
    upload();
    std::printf(" %6.1f", double(bytes) / watch.seconds() / 1e9);
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  const auto gpu = cuda::make_backend();
  const Buffer target = gpu->allocate(kBytes);
  const View device = target.view(DType::u8, 1, std::int64_t(kBytes));
  gpu->wait();

  void* pinned = nullptr;
  OSTRO_CUDA(cudaHostAlloc(&pinned, kPinned, cudaHostAllocDefault));
  std::memset(pinned, 1, kPinned);
  report("pinned", kPinned,
         [&] { OSTRO_CUDA(cudaMemcpy(target.data(), pinned, kPinned, cudaMemcpyHostToDevice)); });
  cudaFreeHost(pinned);

  const Buffer host = allocate_host(kBytes);
  std::memset(host.data(), 1, kBytes);
  const auto upload = [&](void* from) {
    gpu->copy(matrix(from, DType::u8, 1, std::int64_t(kBytes)), device);
    gpu->wait();
  };
  report("pageable", kBytes, [&] { upload(host.data()); });

  const std::string path = std::string(argc > 1 ? argv[1] : "/dev/shm") + "/ostro_upload_bench";
  {
    FileWriter file(path);
    file.write(std::span(static_cast<const std::byte*>(host.data()), kBytes));
    file.close();
  }
  report("file", kBytes, [&] {
    const MappedFile file(path);
    upload(const_cast<std::byte*>(file.bytes().data()));
  });
  std::remove(path.c_str());
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
