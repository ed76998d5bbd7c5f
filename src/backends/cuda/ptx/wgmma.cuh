// Matrix products of one warpgroup, m64nN and 32 bytes of K, with f32 sums: b in shared memory, a
// there or in registers (PTX ISA, "wgmma"; needs sm_90a).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

namespace ostro::cuda::ptx {

// A tile of rows of 128 bytes each, K along the row, its 16-byte chunks swizzled: chunk c of row r
// stands at c ^ (r % 8). `address` is a multiple of 1024 bytes; + 2 in the descriptor moves 32
// bytes along K.
__device__ inline std::uint64_t swizzled_tile(std::uint32_t address) {
  constexpr std::uint64_t kEightRows = 1024 >> 4;  // from one group of eight rows to the next
  constexpr std::uint64_t kSwizzle128 = 1;
  return std::uint64_t((address & 0x3ffff) >> 4) | std::uint64_t{1} << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

// b stored as [K, N]: rows of 64 elements, 128 bytes, swizzled alike; the next 64 of N begin `next`
// bytes later. + 128 in the descriptor moves 16 rows along K. N 64 needs no `next`.
__device__ inline std::uint64_t swizzled_transposed(std::uint32_t address, int next) {
  constexpr std::uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return std::uint64_t((address & 0x3ffff) >> 4) | std::uint64_t(next >> 4) << 16 |
         kEightRows << 32 | kSwizzle128 << 62;
}

// The same of any size, of 1024 bytes alone, eight rows, again and again.
__device__ inline std::uint64_t swizzled_again(std::uint32_t address) {
  return std::uint64_t((address & 0x3ffff) >> 4) | std::uint64_t{1} << 62;
}

// The compiler may neither move uses of x before here, nor give its registers away until here: a
// wgmma reads and writes them while it runs.
template <class X>
__device__ inline void hold_registers(X& x) {
  if constexpr (std::is_array_v<X>) {
#pragma unroll
    for (int i = 0; i < int(std::extent_v<X>); ++i) hold_registers(x[i]);
  } else if constexpr (std::is_same_v<X, float>) {
    asm volatile("" : "+f"(x)::"memory");
  } else {
    asm volatile("" : "+r"(x)::"memory");
  }
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroups>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// run: d += a b^T, run_first: d = a b^T; a [64, 32 bytes] and b [N, 32 bytes]. In thread t of the
// warpgroup, d[4 j + i] is the element of row 16 (t / 32) + t % 32 / 4 + 8 (i / 2) and column 8 j +
// 2 (t % 4) + i % 2.
//
// Of e4m3 the tensor core keeps about 14 bits of a sum: its sums are to be added to others in f32
// before they grow long (quant/e4m3.h).
template <class T, int N>
struct Wgmma;

// One instruction for all types: SUMS names the N / 2 registers of d, A and B the descriptors. ADD:
// whether the products are added to d or replace it.
#define OSTRO_WGMMA_CALL(NAME, ADD, N, SHAPE, MODES, SUMS, A, B, ...)                  \
  static __device__ void NAME(float(&d)[N / 2], std::uint64_t a, std::uint64_t b) {    \
    asm volatile("{ .reg .pred add; setp.ne.b32 add, " #ADD                            \
                 ", 0;"                                                                \
                 "wgmma.mma_async.sync.aligned.m64n" #N SHAPE " {" SUMS "}, " A ", " B \
                 ", add, 1, 1" MODES "; }"                                             \
                 : __VA_ARGS__                                                         \
                 : "l"(a), "l"(b));                                                    \
  }
#define OSTRO_WGMMA_OF(T, N, SHAPE, MODES, SUMS, A, B, ...)                  \
  template <>                                                                \
  struct Wgmma<T, N> {                                                       \
    OSTRO_WGMMA_CALL(run, 1, N, SHAPE, MODES, SUMS, A, B, __VA_ARGS__)       \
    OSTRO_WGMMA_CALL(run_first, 0, N, SHAPE, MODES, SUMS, A, B, __VA_ARGS__) \
  };
#define OSTRO_WGMMA_16(N, SUMS, A, B, ...)                                                 \
  OSTRO_WGMMA_OF(__nv_bfloat16, N, "k16.f32.bf16.bf16", ", 0, 0", SUMS, A, B, __VA_ARGS__) \
  OSTRO_WGMMA_OF(__half, N, "k16.f32.f16.f16", ", 0, 0", SUMS, A, B, __VA_ARGS__)
#define OSTRO_WGMMA_8(N, SUMS, A, B, ...) \
  OSTRO_WGMMA_OF(__nv_fp8_e4m3, N, "k32.f32.e4m3.e4m3", "", SUMS, A, B, __VA_ARGS__)
#define OSTRO_WGMMA(N, SUMS, A, B, ...)      \
  OSTRO_WGMMA_16(N, SUMS, A, B, __VA_ARGS__) \
  OSTRO_WGMMA_8(N, SUMS, A, B, __VA_ARGS__)
#define OSTRO_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OSTRO_16(i) OSTRO_4(i), OSTRO_4(i + 4), OSTRO_4(i + 8), OSTRO_4(i + 12)
#define OSTRO_64(i) OSTRO_16(i), OSTRO_16(i + 16), OSTRO_16(i + 32), OSTRO_16(i + 48)

OSTRO_WGMMA(8, "%0,%1,%2,%3", "%4", "%5", OSTRO_4(0))
OSTRO_WGMMA(16, "%0,%1,%2,%3,%4,%5,%6,%7", "%8", "%9", OSTRO_4(0), OSTRO_4(4))
OSTRO_WGMMA(32, "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15", "%16", "%17", OSTRO_16(0))
OSTRO_WGMMA(64,
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
            "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31",
            "%32", "%33", OSTRO_16(0), OSTRO_16(16))
OSTRO_WGMMA_8(48,
              "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
              "%22,%23",
              "%24", "%25", OSTRO_16(0), OSTRO_4(16), OSTRO_4(20))
OSTRO_WGMMA_8(80,
              "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
              "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39",
              "%40", "%41", OSTRO_16(0), OSTRO_16(16), OSTRO_4(32), OSTRO_4(36))
OSTRO_WGMMA_8(96,
              "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
              "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,"
              "%42,%43,%44,%45,%46,%47",
              "%48", "%49", OSTRO_16(0), OSTRO_16(16), OSTRO_16(32))
OSTRO_WGMMA(128,
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
            "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,"
            "%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"
            "%62,%63",
            "%64", "%65", OSTRO_64(0))
OSTRO_WGMMA_8(192,
              "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,"
              "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,"
              "%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"
              "%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,"
              "%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,"
              "%93,%94,%95",
              "%96", "%97", OSTRO_64(0), OSTRO_16(64), OSTRO_16(80))
OSTRO_WGMMA_16(256,
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
               "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,"
               "%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"
               "%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,"
               "%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,"
               "%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,"
               "%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127",
               "%128", "%129", OSTRO_64(0), OSTRO_64(64))

// d = a b, or d += a b: a [64, 16] in registers, b [16, N], stored so if kTransposed, else as
// [N, 16]. a as in mma.cuh: rows 16 (t / 32) + t % 32 / 4 and + 8, columns 2 (t % 4) and + 8.
template <class T, int N>
struct WgmmaRegisters;

#define OSTRO_WGMMA_REGISTERS_OF(T, N, TYPES, SUMS, A, B, ADD, TRANSPOSED, ...)                 \
  template <>                                                                                   \
  struct WgmmaRegisters<T, N> {                                                                 \
    template <bool kTransposed>                                                                 \
    static __device__ void run(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b, \
                               bool add) {                                                      \
      asm volatile("{ .reg .pred add; setp.ne.b32 add, " ADD                                    \
                   ", 0;"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPES " {" SUMS "}, {" A   \
                   "}, " B ", add, 1, 1, " TRANSPOSED "; }"                                     \
                   : __VA_ARGS__                                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)),         \
                     "n"(int(kTransposed)));                                                    \
    }                                                                                           \
  };
#define OSTRO_WGMMA_REGISTERS(N, SUMS, A, B, ADD, TRANSPOSED, ...)                     \
  OSTRO_WGMMA_REGISTERS_OF(__nv_bfloat16, N, "bf16.bf16", SUMS, A, B, ADD, TRANSPOSED, \
                           __VA_ARGS__)                                                \
  OSTRO_WGMMA_REGISTERS_OF(__half, N, "f16.f16", SUMS, A, B, ADD, TRANSPOSED, __VA_ARGS__)

OSTRO_WGMMA_REGISTERS(8, "%0,%1,%2,%3", "%4,%5,%6,%7", "%8", "%9", "%10", OSTRO_4(0))
OSTRO_WGMMA_REGISTERS(16, "%0,%1,%2,%3,%4,%5,%6,%7", "%8,%9,%10,%11", "%12", "%13", "%14",
                      OSTRO_4(0), OSTRO_4(4))
OSTRO_WGMMA_REGISTERS(32, "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15",
                      "%16,%17,%18,%19", "%20", "%21", "%22", OSTRO_16(0))
OSTRO_WGMMA_REGISTERS(
    48,
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
    "%22,%23",
    "%24,%25,%26,%27", "%28", "%29", "%30", OSTRO_16(0), OSTRO_4(16), OSTRO_4(20))
OSTRO_WGMMA_REGISTERS(
    64,
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
    "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31",
    "%32,%33,%34,%35", "%36", "%37", "%38", OSTRO_16(0), OSTRO_16(16))
OSTRO_WGMMA_REGISTERS(
    128,
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
    "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,"
    "%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,"
    "%60,%61,%62,%63",
    "%64,%65,%66,%67", "%68", "%69", "%70", OSTRO_64(0))

// The same of e4m3, a [64, 32]: a thread's columns are 4 (t % 4) to 4 (t % 4) + 3, and 16 further.
template <>
struct WgmmaRegisters<__nv_fp8_e4m3, 128> {
  static __device__ void run(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b,
                             bool add) {
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %69, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,"
        "%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,"
        "%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,"
        "%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, add, 1, 1; }"
        : OSTRO_64(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
  }
};

#undef OSTRO_64
#undef OSTRO_16
#undef OSTRO_4
#undef OSTRO_WGMMA
#undef OSTRO_WGMMA_8
#undef OSTRO_WGMMA_16
#undef OSTRO_WGMMA_OF
#undef OSTRO_WGMMA_CALL
#undef OSTRO_WGMMA_REGISTERS
#undef OSTRO_WGMMA_REGISTERS_OF

}  // namespace ostro::cuda::ptx
