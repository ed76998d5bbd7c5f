// Bitwise operations of three operands (PTX ISA, "lop3").
#pragma once

#include <cstdint>

namespace ostro::cuda::ptx {

// x & kAnd | kOr in one instruction; from C++ it becomes two, for an instruction has room for one
// constant.
template <std::uint32_t kAnd, std::uint32_t kOr>
__device__ inline std::uint32_t and_or(std::uint32_t x) {
  std::uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "n"(kAnd), "r"(kOr));
  return y;
}

}  // namespace ostro::cuda::ptx
