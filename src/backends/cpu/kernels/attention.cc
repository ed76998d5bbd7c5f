// PagedAttention for the queries of one request that share a KV head: `rows` = queries x group.
//
// KV is walked in tiles of 64 absolute positions. Of each tile the keys are transposed and the
// values widened into the scratch, once for all rows; then for each row: 64 scores with positions
// in lanes, an online softmax, and values weighted with head dimensions in lanes. Each score is one
// chain along head_dim, each output one chain along positions, whatever the number of rows, so a
// query has the same bits in a prompt and alone (batch.invariant).
//
// A row and position take 2 head_dim multiply-adds: keys in bf16 pairs where the instruction set
// has them, values in f32. That is at most 67 % of the VDPBF16PS rate; a prompt of 2048 reaches 43
// % (Zen 4, head_dim 64). Decode reads 4 head_dim bytes a position and KV head (bf16): 75 % of the
// read bandwidth with two threads.
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/simd.h"

namespace ostro::cpu::OSTRO_ISA {
namespace {

constexpr std::int64_t kTile = kAttentionTile;
// Micro-kernels hold kRows x kVecs sums: 24 of 32 registers, or 8 of 16.
constexpr int kRows = kWidth == 16 ? 6 : 4;
constexpr int kVecs = kWidth == 16 ? 4 : 2;
static_assert(kTile % (kVecs * kWidth) == 0);

constexpr std::int64_t up_to(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// How q . k is summed: along f32 elements, or along pairs of bf16.
template <class T>
struct Score {
  static constexpr int kPerWord = 1;
  using Word = float;
  template <class C>  // the cache's type
  static Vec load_key(const C* p) {
    return load(p);
  }
  template <class C>
  static Vec load_key(const C* p, std::int64_t n) {
    return load(p, n);
  }
  static void copy_query(const T* q, float* to, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(to + i, load(q + i));
    if (i < n) store(to + i, load(q + i, n - i), n - i);
  }
  static Vec multiply_add(float q, Vec k, Vec sum) { return fma(set1(q), k, sum); }
};

#ifdef __AVX512BF16__
template <>
struct Score<Bf16> {
  static constexpr int kPerWord = 2;
  using Word = std::uint32_t;
  static Vec load_key(const Bf16* p) { return _mm512_loadu_ps(p); }
  static Vec load_key(const Bf16* p, std::int64_t n) {
    return _mm512_castsi512_ps(
        _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p));
  }
  static Vec load_key(__m256i v) {
    const __mmask32 nan =
        _mm256_cmpeq_epi8_mask(_mm256_and_si256(v, _mm256_set1_epi8(0x7f)), _mm256_set1_epi8(0x7f));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi16(bf16_of(v), nan, _mm512_set1_epi16(0x7fc0)));
  }
  static Vec load_key(const E4m3* p) {
    return load_key(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vec load_key(const E4m3* p, std::int64_t n) {
    return load_key(_mm256_maskz_loadu_epi8(static_cast<__mmask32>((1ull << n) - 1), p));
  }
  static void copy_query(const Bf16* q, std::uint32_t* to, std::int64_t n) {
    to[(n + 1) / 2 - 1] = 0;
    __builtin_memcpy(to, q, static_cast<std::size_t>(n) * 2);
  }
  static Vec multiply_add(std::uint32_t q, Vec k, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(q)), (__m512bh)k);
  }
};
#endif

// The scratch: everything of one call. Rows of `out` and `value` have `dims` floats.
struct Scratch {
  float* key;      // [words, kTile] transposed keys (f32, or pairs of bf16)
  float* value;    // [kTile, dims]
  float* query;    // [rows, words]
  float* score;    // [rows, kTile], then the weights
  float* sum;      // [rows, kWidth] of the segment, by lane
  float* top;      // [rows] running maximum of the segment
  float* out;      // [rows, dims] of the segment
  float* all_top;  // [rows], and sum and out of all segments before
  float* all_sum;
  float* all_out;
  std::int64_t words, dims, bytes;
};

Scratch plan(void* at, std::int64_t rows, std::int64_t head_dim) {
  Scratch s{};
  s.words = up_to(head_dim, 2 * kWidth);  // enough for both ways to score
  s.dims = up_to(head_dim, kWidth);
  char* next = static_cast<char*>(at);
  const auto take = [&](std::int64_t floats) {
    float* p = reinterpret_cast<float*>(next);
    next += up_to(floats * 4, 64);
    return p;
  };
  s.key = take(s.words * kTile);
  s.value = take(kTile * s.dims);
  s.query = take(rows * s.words);
  s.score = take(rows * kTile);
  s.sum = take(rows * kWidth);
  s.top = take(rows);
  s.out = take(rows * s.dims);
  s.all_top = take(rows);
  s.all_sum = take(rows);
  s.all_out = take(rows * s.dims);
  s.bytes = next - static_cast<char*>(at);
  return s;
}

inline std::int64_t cache_row(const Attention& a, std::int64_t position) {
  return (a.blocks[position / a.block_tokens] * a.kv_heads + a.kv_head) * a.block_tokens +
         position % a.block_tokens;
}

// The rows of the next tile, prefetched line by line while this one is used: pages lie anywhere, so
// the hardware prefetcher does not find them, and a burst of prefetches would be dropped.
struct Ahead {
  const char* row[2 * kTile];
  std::int64_t rows = 0, row_bytes = 0;
  std::int64_t next_row = 0, next_byte = 0;

  void step() {
    if (next_row >= rows) return;
    _mm_prefetch(row[next_row] + next_byte, _MM_HINT_T1);
    next_byte += 64;
    if (next_byte >= row_bytes) {
      next_byte = 0;
      ++next_row;
    }
  }
};

template <class C>
void look_ahead(const Attention& a, std::int64_t from, std::int64_t to, Ahead& ahead) {
  ahead.next_row = ahead.next_byte = ahead.rows = 0;
  ahead.row_bytes = a.head_dim * std::int64_t(sizeof(C));
  for (std::int64_t p = from; p < to; ++p) {
    const std::int64_t row = cache_row(a, p);
    ahead.row[ahead.rows++] = reinterpret_cast<const char*>(at<C>(a.v, row * a.v_stride));
    ahead.row[ahead.rows++] = reinterpret_cast<const char*>(at<C>(a.k, row * a.k_stride));
  }
}

// Positions [from, to) of the tile at `tile`; the others become zero. Tells whether all values are
// finite.
template <class T, class C>
bool stage(const Attention& a, const Scratch& s, std::int64_t tile, std::int64_t from,
           std::int64_t to, Ahead& ahead) {
  using S = Score<T>;
  const C* key[kTile];
  Vec check = zero();  // NaN where a value is not finite
  const auto put = [&](float* to, Vec v) {
    store(to, v);
    check = fma(v, zero(), check);
  };
  for (std::int64_t i = 0; i < kTile; ++i) {
    const std::int64_t p = tile + i;
    key[i] = nullptr;
    if (p < from || p >= to) {
      for (std::int64_t d = 0; d < s.dims; d += kWidth) store(s.value + i * s.dims + d, zero());
      continue;
    }
    const std::int64_t row = cache_row(a, p);
    key[i] = at<C>(a.k, row * a.k_stride);
    const C* v = at<C>(a.v, row * a.v_stride);
    float* value = s.value + i * s.dims;
    ahead.step();
    std::int64_t d = 0;
    for (; d + kWidth <= a.head_dim; d += kWidth) put(value + d, load(v + d));
    if (d < a.head_dim) put(value + d, load(v + d, a.head_dim - d));
  }
  constexpr std::int64_t kStep = kWidth * S::kPerWord;
  for (std::int64_t i = 0; i < kTile; i += kWidth)
    for (std::int64_t d = 0; d < a.head_dim; d += kStep) {
      Vec r[kWidth];
      for (int j = 0; j < kWidth; ++j)
        r[j] = !key[i + j]               ? zero()
               : d + kStep <= a.head_dim ? S::load_key(key[i + j] + d)
                                         : S::load_key(key[i + j] + d, a.head_dim - d);
      transpose(r);
      float* to_key = s.key + d / S::kPerWord * kTile + i;
      for (int j = 0; j < kWidth; ++j) store(to_key + j * kTile, r[j]);
      for (int j = 0; j < kWidth / 2; ++j) ahead.step();
    }
  return reduce_add(check) == 0;
}

template <class T, int kR>
void scores(const Scratch& s, std::int64_t row, std::int64_t words, Vec scale, Ahead& ahead) {
  using S = Score<T>;
  const auto* q =
      static_cast<const typename S::Word*>(static_cast<const void*>(s.query)) + row * s.words;
  for (std::int64_t c = 0; c < kTile; c += kVecs * kWidth) {
    Vec sum[kR][kVecs];
#pragma GCC unroll 6
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[r][v] = zero();
    for (std::int64_t w = 0; w < words; ++w) {
      ahead.step();
      Vec k[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) k[v] = load(s.key + w * kTile + c + v * kWidth);
#pragma GCC unroll 6
      for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v)
          sum[r][v] = S::multiply_add(q[r * s.words + w], k[v], sum[r][v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v)
        store(s.score + (row + r) * kTile + c + v * kWidth, mul(sum[r][v], scale));
  }
}

// Scores of positions [from, to) of the tile become weights, the others 0; the row's maximum and
// sum are updated and its outputs rescaled.
void softmax(const Scratch& s, std::int64_t row, std::int64_t from, std::int64_t to) {
  float* score = s.score + row * kTile;
  const Vec low = set1(-__builtin_inff());
  Vec v[kTile / kWidth];
  Vec top = low;
  for (int i = 0; i < kTile / kWidth; ++i) {
    v[i] = keep_lanes_or(load(score + i * kWidth), low, from - i * kWidth, to - i * kWidth);
    top = max(top, v[i]);
  }
  const float before = s.top[row];
  const float highest = reduce_max(top);
  const float now = before < highest ? highest : before;
  s.top[row] = now;
  Vec sum = zero();
  for (int i = 0; i < kTile / kWidth; ++i) {
    const Vec e = keep_lanes(exp(sub(v[i], set1(now))), from - i * kWidth, to - i * kWidth);
    store(score + i * kWidth, e);
    sum = add(sum, e);
  }
  float* lanes = s.sum + row * kWidth;
  if (now == before) {  // rescaling by 1
    store(lanes, add(load(lanes), sum));
    return;
  }
  const Vec rescale = exp(set1(before - now));  // 0 for the first tile
  store(lanes, fma(load(lanes), rescale, sum));
  float* out = s.out + row * s.dims;
  for (std::int64_t d = 0; d < s.dims; d += kWidth) store(out + d, mul(load(out + d), rescale));
}

template <int kR, int kV>
void weigh(const Scratch& s, std::int64_t row, std::int64_t d, std::int64_t from, std::int64_t to,
           Ahead& ahead) {
  Vec sum[kR][kV];
#pragma GCC unroll 6
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[r][v] = load(s.out + (row + r) * s.dims + d + v * kWidth);
  const float* weight = s.score + row * kTile;
  for (std::int64_t p = from; p < to; ++p) {
    ahead.step();
    Vec value[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) value[v] = load(s.value + p * s.dims + d + v * kWidth);
#pragma GCC unroll 6
    for (int r = 0; r < kR; ++r) {
      const Vec w = set1(weight[r * kTile + p]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[r][v] = fma(w, value[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(s.out + (row + r) * s.dims + d + v * kWidth, sum[r][v]);
}

template <int kR>
void weigh_rows(const Scratch& s, std::int64_t row, std::int64_t from, std::int64_t to,
                Ahead& ahead) {
  std::int64_t d = 0;
  for (; d + kVecs * kWidth <= s.dims; d += kVecs * kWidth)
    weigh<kR, kVecs>(s, row, d, from, to, ahead);
  for (; d < s.dims; d += kWidth) weigh<kR, 1>(s, row, d, from, to, ahead);
}

// Calls fn.operator()<R>(row) for [row, end) in groups of up to kRows.
template <class Fn>
inline void in_groups(std::int64_t row, std::int64_t end, Fn&& fn) {
  while (row < end) {
    const std::int64_t left = end - row;
    const std::int64_t groups = (left + kRows - 1) / kRows;
    const std::int64_t now = (left + groups - 1) / groups;
    switch (now) {
      case 1:
        fn.template operator()<1>(row);
        break;
      case 2:
        fn.template operator()<2>(row);
        break;
      case 3:
        fn.template operator()<3>(row);
        break;
      case 4:
        fn.template operator()<4>(row);
        break;
      case 5:
        fn.template operator() < kRows<5 ? 1 : 5>(row);
        break;
      case 6:
        fn.template operator() < kRows<6 ? 1 : 6>(row);
        break;
    }
    row += now;
  }
}

// (top, sum, out) of the segments so far takes in those of the next one.
inline void merge(float& all_top, float& all_sum, float* all_out, float top, float sum,
                  const float* out, std::int64_t n) {
  const float now = all_top < top ? top : all_top;
  const float a = exp(all_top - now), b = exp(top - now);
  all_top = now;
  all_sum = all_sum * a + sum * b;
  const auto take = [&](std::int64_t d, auto... lanes) {
    store(all_out + d,
          fma(load(all_out + d, lanes...), set1(a), mul(load(out + d, lanes...), set1(b))),
          lanes...);
  };
  std::int64_t d = 0;
  for (; d + kWidth <= n; d += kWidth) take(d);
  if (d < n) take(d, n - d);
}

template <class T>
void store_output(T* y, const float* out, float sum, std::int64_t n) {
  const Vec scale = set1(1.0f / sum);
  std::int64_t d = 0;
  for (; d + kWidth <= n; d += kWidth) store(y + d, mul(load(out + d), scale));
  if (d < n) store(y + d, mul(load(out + d, n - d), scale), n - d);
}

template <class T, class C>
void segment(const Attention& a, const Scratch& s, std::int64_t begin, std::int64_t end) {
  using S = Score<T>;
  const std::int64_t rows = a.queries * a.group;
  for (std::int64_t r = 0; r < rows; ++r) s.top[r] = -__builtin_inff();
  for (std::int64_t i = 0; i < rows * kWidth; i += kWidth) store(s.sum + i, zero());
  for (std::int64_t i = 0; i < rows * s.dims; i += kWidth) store(s.out + i, zero());
  const std::int64_t words = (a.head_dim + S::kPerWord - 1) / S::kPerWord;
  const Vec scale = set1(a.scale);
  Ahead ahead;

  for (std::int64_t tile = begin / kTile * kTile; tile < end; tile += kTile) {
    const std::int64_t from = most(begin, tile), to = least(end, tile + kTile);
    // The queries that see some of the tile: not all before it, and its end in their window.
    const std::int64_t first = most(0, tile - a.first_position);
    std::int64_t last = a.queries;
    if (a.window > 0) last = least(last, to - 1 + a.window - a.first_position);
    if (first >= last) continue;
    look_ahead<C>(a, to, least(end, to + kTile), ahead);
    const bool finite = stage<T, C>(a, s, tile, from, to, ahead);
    const std::int64_t row0 = first * a.group, row1 = last * a.group;
    in_groups(row0, row1,
              [&]<int kR>(std::int64_t row) { scores<T, kR>(s, row, words, scale, ahead); });
    for (std::int64_t row = row0; row < row1; ++row) {
      const std::int64_t position = a.first_position + row / a.group;
      const std::int64_t low = a.window > 0 ? most(from, position - a.window + 1) : from;
      const std::int64_t high = least(to, position + 1);
      softmax(s, row, low - tile, high - tile);
      // A weight of 0 does not keep NaN and infinity out.
      if (!finite) weigh_rows<1>(s, row, low - tile, high - tile, ahead);
    }
    if (!finite) continue;
    in_groups(row0, row1, [&]<int kR>(std::int64_t row) {
      weigh_rows<kR>(s, row, from - tile, to - tile, ahead);
    });
  }
}

// T: of the activations, C: of the cache.
template <class T, class C>
void attention_typed(const Attention& a) {
  using S = Score<T>;
  const std::int64_t rows = a.queries * a.group;
  const Scratch s = plan(a.scratch, rows, a.head_dim);
  auto* q = static_cast<typename S::Word*>(static_cast<void*>(s.query));
  for (std::int64_t r = 0; r < rows; ++r) {
    S::copy_query(at<T>(a.q, r / a.group * a.q_stride + r % a.group * a.head_dim), q + r * s.words,
                  a.head_dim);
    s.all_top[r] = -__builtin_inff();
  }

  const std::int64_t last = least(a.end, a.first_position + a.queries);
  std::int64_t begin = a.begin;
  if (a.window > 0) begin = most(begin, a.first_position - a.window + 1);
  while (begin < last) {
    const std::int64_t end =
        least(last, begin / kAttentionSegment * kAttentionSegment + kAttentionSegment);
    segment<T, C>(a, s, begin, end);
    begin = end;
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* out = s.out + r * s.dims;
      const float sum = reduce_add(load(s.sum + r * kWidth));
      if (s.top[r] == -__builtin_inff()) continue;  // sees nothing of it
      if (s.all_top[r] == -__builtin_inff()) {
        s.all_top[r] = s.top[r];
        s.all_sum[r] = sum;
        for (std::int64_t d = 0; d < s.dims; d += kWidth)
          store(s.all_out + r * s.dims + d, load(out + d));
      } else {
        merge(s.all_top[r], s.all_sum[r], s.all_out + r * s.dims, s.top[r], sum, out, s.dims);
      }
    }
  }

  for (std::int64_t r = 0; r < rows; ++r) {
    const float* out = s.all_out + r * s.dims;
    if (a.partial) {
      float* p = a.partial + r * (kAttentionPartial + a.head_dim);
      p[0] = s.all_top[r];
      p[1] = s.all_sum[r];
      if (p[0] == -__builtin_inff()) continue;
      __builtin_memcpy(p + kAttentionPartial, out, static_cast<std::size_t>(a.head_dim) * 4);
    } else {
      store_output(at<T>(a.y, r / a.group * a.y_stride + r % a.group * a.head_dim), out,
                   s.all_sum[r], a.head_dim);
    }
  }
}

}  // namespace

std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t head_dim) {
  return plan(nullptr, rows, head_dim).bytes;
}

void attention(const Attention& a) {
  with_element(a.type, [&]<class T>(T) {
    if (a.cache_type == Element::e4m3)
      attention_typed<T, E4m3>(a);
    else
      attention_typed<T, T>(a);
  });
}

void attention_merge(const AttentionMerge& m) {
  float top = -__builtin_inff(), sum = 0;
  for (std::int64_t i = 0; i < m.segments; ++i) {
    const float* p = m.partial + i * m.segment_stride;
    if (p[0] == -__builtin_inff()) continue;
    if (top == -__builtin_inff()) {
      top = p[0];
      sum = p[1];
      __builtin_memcpy(m.scratch, p + kAttentionPartial, static_cast<std::size_t>(m.head_dim) * 4);
    } else {
      merge(top, sum, m.scratch, p[0], p[1], p + kAttentionPartial, m.head_dim);
    }
  }
  with_element(m.type,
               [&]<class T>(T) { store_output(static_cast<T*>(m.y), m.scratch, sum, m.head_dim); });
}

}  // namespace ostro::cpu::OSTRO_ISA
