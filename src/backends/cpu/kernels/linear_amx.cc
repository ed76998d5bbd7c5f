// The product of linear.cc with AMX tiles, for bf16: 16 x 32 weights straight from their rows times
// 32 x 16 activations, which are packed into pairs of k first: [16 tokens][k / 32][16 pairs][16].
//
// A tile of 16 x 16 sums runs along all of k, so the order of an output's additions is one chain of
// pairs whatever the number of tokens, and one token takes the same way as many: it fills one
// column of sixteen, but the weights bound the time then. Two by two tiles of sums: 4 KiB of loads
// (L2) for 64 cycles of multiply-adds.
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/simd.h"

#ifdef __AMX_BF16__

namespace ostro::cpu::OSTRO_ISA {
namespace {

constexpr std::int64_t kSide = 16;   // rows of a tile, tokens of a tile
constexpr std::int64_t kDepth = 32;  // k of a tile
constexpr std::int64_t kTileBytes = 1024;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0 to 3: sums, 4 and 5: weights, of `rows` rows; 6 and 7: activations.
inline void configure(std::int64_t rows) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = static_cast<std::uint8_t>(t < 6 ? rows : kSide);
  }
  asm volatile("" : : "r"(&config) : "memory");  // GCC 12 drops the stores otherwise
  _tile_loadconfig(&config);
}

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// What the packed activations in a scratch are, before them in it.
struct alignas(64) Header {
  std::int64_t key;
};

void pack(const Gemm& g, char* to) {
  const std::int64_t steps = (g.k + kDepth - 1) / kDepth;
  for (std::int64_t m0 = 0; m0 < g.m; m0 += kSide)
    for (std::int64_t s = 0; s < steps; ++s, to += kTileBytes) {
      const std::int64_t k = least(kDepth, g.k - s * kDepth);
      const auto some = static_cast<__mmask32>((1ull << k) - 1);
      Vec r[kWidth];
      for (std::int64_t t = 0; t < kSide; ++t) {
        const std::int64_t m = m0 + t;
        r[t] = m < g.m
                   ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(
                         some, at<Bf16>(g.x, (g.rows ? g.rows[m] : m) * g.x_stride) + s * kDepth))
                   : zero();
      }
      transpose(r);  // [16 pairs][16 tokens]
      for (std::int64_t p = 0; p < kSide; ++p)
        _mm512_store_ps(reinterpret_cast<float*>(to + p * 64), r[p]);
    }
}

// sums [rows of w][tokens] to sum[tokens][n0 + row].
inline void put(const Gemm& g, const float* sums, std::int64_t m0, std::int64_t n0,
                std::int64_t rows) {
  Vec r[kWidth];
  for (std::int64_t i = 0; i < kSide; ++i) r[i] = i < rows ? load(sums + i * kSide) : zero();
  transpose(r);
  const std::int64_t tokens = least(kSide, g.m - m0);
  for (std::int64_t t = 0; t < tokens; ++t) store(g.sum + (m0 + t) * g.sum_stride + n0, r[t], rows);
}

// Rows n0 to n0 + 32 (kPair) or n0 + rows of w, tokens m0 to m0 + 32 (kWide) or m0 + 16.
template <bool kPair, bool kWide>
void tiles(const Gemm& g, const char* packed, std::int64_t n0, std::int64_t rows, std::int64_t m0,
           const char* ahead) {
  const std::int64_t steps = (g.k + kDepth - 1) / kDepth, whole = g.k / kDepth;
  const std::int64_t w_bytes = g.w_stride * 2;
  const char* w = static_cast<const char*>(g.w) + n0 * w_bytes;
  const char* b = packed + m0 / kSide * steps * kTileBytes;
  _tile_zero(0);
  if constexpr (kWide) _tile_zero(1);
  if constexpr (kPair) _tile_zero(2);
  if constexpr (kPair && kWide) _tile_zero(3);
  const auto multiply = [&](const char* a, std::int64_t a_bytes, std::int64_t s) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, b + s * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWide) {
      _tile_loadd(7, b + (steps + s) * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kPair) {
      _tile_loadd(5, a + kSide * a_bytes, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kWide) _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (std::int64_t s = 0; s < whole; ++s) {
    if (ahead)
      for (int l = 0; l < (kPair ? 32 : 16); ++l, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    multiply(w + s * 64, w_bytes, s);
  }
  if (whole < steps) {  // the last k, padded with zeros
    alignas(64) Bf16 last[2 * kSide][kDepth];
    const std::int64_t k = g.k - whole * kDepth;
    for (std::int64_t r = 0; r < (kPair ? 2 * kSide : rows); ++r)
      _mm512_store_si512(last[r], _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << k) - 1),
                                                           w + r * w_bytes + whole * 64));
    asm volatile("" : : "r"(last) : "memory");  // as in configure()
    multiply(reinterpret_cast<const char*>(last), 64, whole);
  }
  alignas(64) float sums[kSide * kSide];
  _tile_stored(0, sums, 64);
  put(g, sums, m0, n0, kPair ? kSide : rows);
  if constexpr (kWide) {
    _tile_stored(1, sums, 64);
    put(g, sums, m0 + kSide, n0, kPair ? kSide : rows);
  }
  if constexpr (kPair) {
    _tile_stored(2, sums, 64);
    put(g, sums, m0, n0 + kSide, kSide);
  }
  if constexpr (kPair && kWide) {
    _tile_stored(3, sums, 64);
    put(g, sums, m0 + kSide, n0 + kSide, kSide);
  }
}

template <bool kPair>
void row_block(const Gemm& g, const char* packed, std::int64_t n0, std::int64_t rows) {
  // The weights after these, fetched to L2 while the first tokens are multiplied.
  const std::int64_t next = n0 + rows;
  const char* ahead = next < g.n ? static_cast<const char*>(g.w) + next * g.w_stride * 2
                                 : static_cast<const char*>(g.next_w);
  for (std::int64_t m0 = 0; m0 < g.m; m0 += 2 * kSide) {
    if (g.m - m0 > kSide)
      tiles<kPair, true>(g, packed, n0, rows, m0, m0 == 0 ? ahead : nullptr);
    else
      tiles<kPair, false>(g, packed, n0, rows, m0, m0 == 0 ? ahead : nullptr);
  }
}

}  // namespace

std::int64_t gemm_tiles_scratch_bytes(std::int64_t m, std::int64_t k) {
  return std::int64_t(sizeof(Header)) +
         (m + kSide - 1) / kSide * ((k + kDepth - 1) / kDepth) * kTileBytes;
}

void gemm_tiles(const Gemm& g) {
  Header* const header = static_cast<Header*>(g.scratch);
  char* const packed = reinterpret_cast<char*>(header + 1);
  if (g.pack_key == 0 || header->key != g.pack_key) {
    pack(g, packed);
    header->key = g.pack_key;
  }
  configure(kSide);
  std::int64_t n0 = 0;
  for (; n0 + 2 * kSide <= g.n; n0 += 2 * kSide) row_block<true>(g, packed, n0, 2 * kSide);
  for (; n0 < g.n; n0 += kSide) {
    const std::int64_t rows = least(kSide, g.n - n0);
    if (rows < kSide) configure(rows);
    row_block<false>(g, packed, n0, rows);
  }
  _tile_release();
}

}  // namespace ostro::cpu::OSTRO_ISA

#endif
