#include "backends/cuda/kernels/tensor_map.h"

#include "backends/cuda/launch.h"
#include "base/math.h"

namespace ostro::cuda {
namespace {

// From the driver that is loaded: the program links to the runtime alone.
auto encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  OSTRO_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &found));
  OSTRO_SUPPORTED(found == cudaDriverEntryPointSuccess && function,
                  "the NVIDIA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

CUtensorMap map_of(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                   int box_cols, int box_rows, CUtensorMapSwizzle swizzle) {
  CUtensorMap map{};
  if (rows == 0 || cols == 0) return map;  // nobody reads it
  static const auto encode = encoder();
  const cuuint64_t size[] = {cuuint64_t(cols), cuuint64_t(rows)};
  // That of a single row may be anything.
  const cuuint64_t row_bytes[] = {cuuint64_t(rows > 1 ? stride : round_up<std::int64_t>(cols, 16))};
  const cuuint32_t box[] = {cuuint32_t(box_cols), cuuint32_t(box_rows)};
  const cuuint32_t every[] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), size, row_bytes, box,
             every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  OSTRO_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of [", rows, ',', cols,
              "] with rows every ", stride, " bytes: error ", int(status));
  return map;
}

}  // namespace

CUtensorMap swizzled_map(const void* data, std::int64_t rows, std::int64_t cols,
                         std::int64_t stride, int box_rows) {
  return map_of(data, rows, cols, stride, 128, box_rows, CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap packed_map(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                       int box_cols, int box_rows) {
  return map_of(data, rows, cols, stride, box_cols, box_rows, CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace ostro::cuda
