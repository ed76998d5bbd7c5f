// Words that processors of several GPUs write and poll (PTX ISA, "Memory Consistency Model"): each
// access is strong at system scope, so that each 64-bit word is read as it was written, whole.
#pragma once

#include <cstdint>

namespace ostro::cuda::ptx {

// Two words at a 16-byte aligned address; one may arrive before the other.
__device__ inline void store_words(void* to, std::uint64_t first, std::uint64_t second) {
  asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second)
               : "memory");
}
__device__ inline void load_words(const void* from, std::uint64_t& first, std::uint64_t& second) {
  asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(from)
               : "memory");
}

__device__ inline std::uint32_t load_word(const std::uint32_t* from) {
  std::uint32_t word;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

}  // namespace ostro::cuda::ptx
