// The product of linear.cc with AMX tiles, for bf16 x and weights of bf16, e4m3 or int8: tiles of
// 16 x 32 weights times 32 x 16 activations, which are packed into pairs of k first:
// [16 tokens][k / 32][16 pairs][16].
//
// Every multiplication of tiles adds 16 x 16 sums over 32 of k to those before it, so an output is
// one chain along k whatever the number of tokens; one token takes the same way as many: it fills
// one column of sixteen, but the weights bound the time then.
//
// Two by two tiles of sums: 4 KiB of loads for 64 cycles of multiplications, more than the L2
// gives. So for many tokens 32 rows of weights are copied to whole tiles, which rows a multiple of
// 2 KiB apart are not (32 of them share two sets of the L1), and 32 rows x 512 stay in the L1 while
// all tokens stream past them from the L2; the sums so far wait in memory, as tiles. Of x, as much
// is used at a time as stays in the L2.
#include "backends/cpu/kernels/amx.h"
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/pairs.h"

#ifdef __AMX_BF16__

namespace ostro::cpu::OSTRO_ISA {
namespace {

constexpr std::int64_t kPair = 2 * kSide;  // rows of w, and tokens, of two by two tiles
constexpr std::int64_t kPairBytes = 2 * kTileBytes;
constexpr std::int64_t kSumBytes = 4 * kTileBytes;
constexpr std::int64_t kInnerSteps = 16;   // of kDepth: 32 KiB of weights
constexpr std::int64_t kColumns = 256;     // of w while sums wait
constexpr std::int64_t kXBytes = 1 << 20;  // of x in the L2
constexpr std::int64_t kRowSteps = 8;      // of a row laid out at a time: whole lines
constexpr std::int64_t kPassesInPlace = 5;
constexpr std::int64_t kMostSteps = 8 * kInnerSteps;  // of w laid out at a time: 256 KiB

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What the packed activations in a scratch are, before them in it.
struct alignas(64) Header {
  std::int64_t key;
};

// A scratch: the header, x if it is packed here, weights as tiles, sums as tiles.
struct Sizes {
  std::int64_t steps;        // of kDepth along k
  std::int64_t outer_steps;  // of x and w at a time
  std::int64_t passes;       // pairs of token tiles
  std::int64_t x_bytes, w_bytes, sum_bytes;

  Sizes(std::int64_t m, std::int64_t k) : steps(ceil_div(k, kDepth)), passes(ceil_div(m, kPair)) {
    const std::int64_t fits = kXBytes / (passes * kPairBytes) / kInnerSteps * kInnerSteps;
    outer_steps = fits < kInnerSteps ? kInnerSteps : least(fits, kMostSteps);
    x_bytes = ceil_div(m, kSide) * steps * kTileBytes;
    w_bytes = least(steps, outer_steps) * kPairBytes;
    sum_bytes = passes * kSumBytes * (steps > outer_steps ? kColumns / kPair : 1);
  }
};

// Tokens x 32 of k, [16 pairs][16 tokens].
inline void pack_tile(const PackRows& p, std::int64_t m0, std::int64_t k0, char* to) {
  const std::int64_t k = least(kDepth, p.k - k0);
  Vec r[kWidth];
  for (std::int64_t t = 0; t < kSide; ++t) {
    const std::int64_t m = m0 + t;
    if (m >= p.m) {
      r[t] = zero();
      continue;
    }
    const Bf16* x = at<Bf16>(p.x, (p.rows ? p.rows[m] : m) * p.x_stride) + k0;
    r[t] = _mm512_castsi512_ps(k == kDepth ? load_pairs(x) : load_pairs(x, k));
  }
  transpose(r);
  for (std::int64_t i = 0; i < kSide; ++i) _mm512_store_ps(to + i * 64, r[i]);
}

// The weights that come after these, fetched to the L2 a few lines at a time.
struct Ahead {
  const char* row = nullptr;
  std::int64_t stride = 0, rows = 0, row_lines = 0;
  std::int64_t line = 0;

  std::int64_t lines() const { return rows * row_lines; }
  void fetch(std::int64_t count) {
    while (count > 0 && rows > 0) {
      const std::int64_t here = least(count, row_lines - line);
      for (std::int64_t l = line; l < line + here; ++l) _mm_prefetch(row + l * 64, _MM_HINT_T1);
      count -= here;
      line += here;
      if (line < row_lines) return;
      line = 0;
      row += stride;
      --rows;
    }
  }
};

// Rows n0 to n0 + 32 of w, `steps` from s0 on: [steps][2][16 rows][32]; zeros beyond w.
template <class W>
void lay_out(const Gemm& g, std::int64_t n0, std::int64_t s0, std::int64_t steps, char* to,
             Ahead& ahead, std::int64_t lines_a_row) {
  for (std::int64_t s1 = 0; s1 < steps; s1 += kRowSteps) {
    const std::int64_t end = least(steps, s1 + kRowSteps);
    for (std::int64_t r = 0; r < kPair; ++r) {
      char* const row = to + r / kSide * kTileBytes + r % kSide * 64;
      if (n0 + r >= g.n) {
        for (std::int64_t s = s1; s < end; ++s)
          _mm512_store_si512(row + s * kPairBytes, _mm512_setzero_si512());
        continue;
      }
      ahead.fetch(lines_a_row);
      const W* const w = at<W>(g.w, (n0 + r) * g.w_stride) + s0 * kDepth;
      const std::int64_t whole = least(end, g.k / kDepth - s0);
#pragma GCC unroll 4
      for (std::int64_t s = s1; s < whole; ++s)
        _mm512_store_si512(row + s * kPairBytes, load_pairs(w + s * kDepth));
      if (whole < end)
        _mm512_store_si512(row + whole * kPairBytes, load_pairs(w + whole * kDepth, g.k % kDepth));
    }
  }
}

// 32 rows of w, as tiles of 16 rows that lie `step` bytes apart along k.
struct Weights {
  const char* at;
  std::int64_t row, half, step;  // bytes to the next row, the next 16 rows, the next 32 of k
};

// Sums of tiles 0 to 3 over `steps`: of token tiles x0 and x1, and of both halves of w.
template <bool kWide>
inline void multiply(const Weights& w, const char* x0, const char* x1, std::int64_t steps,
                     Ahead& ahead, std::int64_t lines) {
  for (std::int64_t s = 0; s < steps; ++s) {
    ahead.fetch(lines);
    const char* const a = w.at + s * w.step;
    _tile_loadd(4, a, w.row);
    _tile_stream_loadd(6, x0 + s * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + w.half, w.row);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kWide) {
      _tile_stream_loadd(7, x1 + s * kTileBytes, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// Sums [16 rows of w][16 tokens] to sum[m0 + token][n0 + row].
inline void put(const Gemm& g, const char* sums, std::int64_t m0, std::int64_t n0) {
  if (n0 >= g.n || m0 >= g.m) return;
  const std::int64_t rows = least(kSide, g.n - n0), tokens = least(kSide, g.m - m0);
  Vec r[kWidth];
  for (std::int64_t i = 0; i < kSide; ++i) r[i] = _mm512_load_ps(sums + i * 64);
  transpose(r);
  float* to = g.sum + m0 * g.sum_stride + n0;
  if (rows == kSide && tokens == kSide) {
    for (std::int64_t t = 0; t < kSide; ++t) store(to + t * g.sum_stride, r[t]);
  } else {
    for (std::int64_t t = 0; t < tokens; ++t) store(to + t * g.sum_stride, r[t], rows);
  }
}

template <bool kWide>
void block(const Gemm& g, const Weights& w, const char* x0, const char* x1, std::int64_t steps,
           bool first, bool last, std::int64_t m0, std::int64_t n0, char* sums, Ahead& ahead,
           std::int64_t lines) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kWide) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kTileBytes, 64);
    if constexpr (kWide) {
      _tile_loadd(2, sums + 2 * kTileBytes, 64);
      _tile_loadd(3, sums + 3 * kTileBytes, 64);
    }
  }
  multiply<kWide>(w, x0, x1, steps, ahead, lines);
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTileBytes, 64);
  if constexpr (kWide) {
    _tile_stored(2, sums + 2 * kTileBytes, 64);
    _tile_stored(3, sums + 3 * kTileBytes, 64);
  }
  if (!last) return;
  put(g, sums, m0, n0);
  put(g, sums + kTileBytes, m0, n0 + kSide);
  if constexpr (kWide) {
    put(g, sums + 2 * kTileBytes, m0 + kSide, n0);
    put(g, sums + 3 * kTileBytes, m0 + kSide, n0 + kSide);
  }
}

// The part of a product that is one walk through weights: 32 rows, some of k.
struct Piece {
  std::int64_t n0, s0, steps;
};

template <class W>
class Product {
 public:
  Product(const Gemm& g, const char* x, char* scratch, const Sizes& sizes)
      : g_(g), x_(x), w_(scratch), sums_(scratch + sizes.w_bytes), size_(sizes) {
    // Few passes use weights where they lie, if those need not be widened: a copy costs more.
    in_place_ = __is_same(W, Bf16) && size_.passes <= kPassesInPlace && g.k % kDepth == 0 &&
                g.n % kPair == 0;
  }

  void run() {
    const std::int64_t outer = in_place_ ? size_.steps : size_.outer_steps;
    for (std::int64_t c = 0; c < g_.n; c += kColumns) {
      const std::int64_t end = least(g_.n, c + kColumns);
      for (std::int64_t s0 = 0; s0 < size_.steps; s0 += outer) {
        const std::int64_t steps = least(outer, size_.steps - s0);
        for (std::int64_t n0 = c; n0 < end; n0 += kPair) {
          if (n0 + kPair < end)
            look_ahead({n0 + kPair, s0, steps});
          else if (s0 + steps < size_.steps)
            look_ahead({c, s0 + steps, least(outer, size_.steps - s0 - steps)});
          else
            look_ahead({end, 0, least(outer, size_.steps)});
          const bool wait = size_.steps > outer;
          char* const sums = sums_ + (wait ? (n0 - c) / kPair * size_.passes * kSumBytes : 0);
          walk({n0, s0, steps}, sums);
        }
      }
    }
  }

 private:
  void look_ahead(const Piece& next) {
    ahead_ = {};
    const void* from = next.n0 < g_.n ? at<W>(g_.w, next.n0 * g_.w_stride) : g_.next_w;
    if (!from) return;
    ahead_.row = reinterpret_cast<const char*>(at<W>(from, next.s0 * kDepth));
    ahead_.stride = g_.w_stride * std::int64_t(sizeof(W));
    ahead_.rows = next.n0 < g_.n ? least(kPair, g_.n - next.n0) : kPair;
    ahead_.row_lines = ceil_div(next.steps * kDepth * std::int64_t(sizeof(W)), 64);
  }

  void walk(const Piece& p, char* sums) {
    const char* const in_place = reinterpret_cast<const char*>(at<W>(g_.w, p.n0 * g_.w_stride));
    const std::int64_t row = g_.w_stride * std::int64_t(sizeof(W));
    // In place the first pass waits for memory anyway, and the others should not.
    const std::int64_t lines = ceil_div(ahead_.lines(), (in_place_ ? 1 : size_.passes) * p.steps);
    // One pass uses at once what is laid out; a part ahead, because tiles are not loaded from
    // stores that wait to reach the L1.
    const bool one = size_.passes == 1 && !in_place_;
    const std::int64_t inner = in_place_ ? p.steps : one ? kRowSteps : kInnerSteps;
    const auto part = [&](std::int64_t s) { return w_ + s % (2 * kRowSteps) * kPairBytes; };
    const auto lay_out_part = [&](std::int64_t s) {
      const std::int64_t steps = least(inner, p.steps - s);
      lay_out<W>(g_, p.n0, p.s0 + s, steps, part(s), ahead_, ceil_div(lines * steps, kPair));
    };
    if (one)
      lay_out_part(0);
    else if (!in_place_)
      lay_out<W>(g_, p.n0, p.s0, p.steps, w_, ahead_, 0);
    for (std::int64_t s = 0; s < p.steps; s += inner) {
      const std::int64_t steps = least(inner, p.steps - s), s1 = p.s0 + s;
      const bool first = s1 == 0, last = s1 + steps == size_.steps;
      if (one && s + inner < p.steps) lay_out_part(s + inner);
      const Weights w =
          in_place_ ? Weights{in_place + s1 * 64, row, kSide * row, 64}
                    : Weights{one ? part(s) : w_ + s * kPairBytes, 64, kTileBytes, kPairBytes};
      for (std::int64_t pass = 0; pass < size_.passes; ++pass) {
        const std::int64_t m0 = pass * kPair;
        const char* const x0 = x_ + (m0 / kSide * size_.steps + s1) * kTileBytes;
        const char* const x1 = x0 + size_.steps * kTileBytes;
        char* const to = sums + pass * kSumBytes;
        const std::int64_t now = one ? 0 : lines;
        if (g_.m - m0 > kSide)
          block<true>(g_, w, x0, x1, steps, first, last, m0, p.n0, to, ahead_, now);
        else
          block<false>(g_, w, x0, x1, steps, first, last, m0, p.n0, to, ahead_, now);
      }
    }
  }

  const Gemm& g_;
  const char* const x_;
  char* const w_;
  char* const sums_;
  const Sizes size_;
  bool in_place_;
  Ahead ahead_;
};

}  // namespace

std::int64_t packed_bytes(std::int64_t m, std::int64_t k) {
  return ceil_div(m, kSide) * ceil_div(k, kDepth) * kTileBytes;
}

void pack_rows(const PackRows& p) {
  char* to = static_cast<char*>(p.to);
  for (std::int64_t m0 = 0; m0 < p.m; m0 += kSide)
    for (std::int64_t k0 = 0; k0 < p.k; k0 += kDepth, to += kTileBytes) pack_tile(p, m0, k0, to);
}

std::int64_t gemm_tiles_scratch_bytes(std::int64_t m, std::int64_t k) {
  // The most of each, over all up to m: the fewer tokens, the more of w at a time.
  const Sizes one(1, k), all(m, k), packed_here(least(m, kGemmStagedRows), k);
  return std::int64_t(sizeof(Header)) + packed_here.x_bytes + one.w_bytes +
         all.passes * kSumBytes * (kColumns / kPair);
}

void gemm_tiles(const Gemm& g) {
  Header* const header = static_cast<Header*>(g.scratch);
  char* scratch = reinterpret_cast<char*>(header + 1);
  const Sizes sizes(g.m, g.k);
  const char* x = static_cast<const char*>(g.packed);
  if (!x) {
    if (g.pack_key == 0 || header->key != g.pack_key) {
      pack_rows(
          {.x = g.x, .rows = g.rows, .to = scratch, .x_stride = g.x_stride, .m = g.m, .k = g.k});
      header->key = g.pack_key;
    }
    x = scratch;
    scratch += sizes.x_bytes;
  }
  const Tiles tiles;
  if (g.w_type == Element::bf16) Product<Bf16>(g, x, scratch, sizes).run();
  if (g.w_type == Element::e4m3) Product<E4m3>(g, x, scratch, sizes).run();
  if (g.w_type == Element::int8) Product<Int8>(g, x, scratch, sizes).run();
}

}  // namespace ostro::cpu::OSTRO_ISA

#endif
