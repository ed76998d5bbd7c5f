// ops::Sample on CUDA. The contract is in ops/sample.h.
//
// Grid:     one block of 1024 threads for each row of settings.
// Method:   no sorting. Tokens are ordered by a key of 64 bits, the logit and then the id; the
//           token at which a sum along that order (of tokens for top_k, of weights for top_p and
//           for the draw) reaches a number is found by histograms of 2048 bins: first of distances
//           from the largest logit, which spread well, then of 11 bits of the key after 11. Weights
//           are added as integers, so that the order of the additions does not matter.
// Traffic:  a row is read once for greedy, once more for its log-probability, and up to 12 times
//           (usually 8) for top_k with top_p; from L2.
// Bound by: exp in f64, and the latency of a histogram: some 5 us each. Not measured yet.
#include "backends/cuda/kernels/sample.h"

#include "backends/cuda/kernels/element.cuh"
#include "backends/cuda/launch.h"

namespace ostro::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kBinBits = 11, kBins = 1 << kBinBits;
constexpr int kBinsEach = kBins / kThreads;
constexpr float kBinsPerNat = 64;  // of the first histogram: the last bin begins at e^-32

using Key = unsigned long long;

struct Shared {
  Key mass[kBins];
  int count[kBins];
  Key warp_key[kWarps];
  double warp_sum[kWarps];
  Key found, before;
  int bin, bin_count;
};

__device__ Key key_of(float logit, int token) {
  const unsigned bits = __float_as_uint(logit + 0.0f);  // -0 is 0
  const unsigned order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return Key{order} << 32 | unsigned(~token);
}
__device__ int token_of(Key key) { return int(~unsigned(key)); }

__device__ Key mix(Key z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
__device__ double uniform(Key seed, Key counter) {
  const Key bits = mix(mix(seed + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
  return double(bits >> 11) * 0x1p-53;
}

// For a whole block; every thread gets the result.
__device__ Key block_max(Shared& s, Key x) {
  for (int d = 16; d > 0; d /= 2) x = max(x, __shfl_xor_sync(~0u, x, d));
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_key[threadIdx.x / 32] = x;
  __syncthreads();
  x = s.warp_key[threadIdx.x % 32];
  for (int d = 16; d > 0; d /= 2) x = max(x, __shfl_xor_sync(~0u, x, d));
  return x;
}
template <class T>
__device__ T block_sum(T* of_warps, T x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warps[threadIdx.x % 32];
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

// The candidates of a row: tokens of a key of `least` or more, and of a weight of min_p or more.
struct Candidates {
  const float* logits;
  int vocab, shift;  // a weight of 1 is 1 << shift
  float best;
  Key best_key;
  double temperature;
  Key least = 0;
  double min_p = 0;

  __device__ double weight(float logit) const { return exp((double(logit) - best) / temperature); }
  __device__ Key mass(float logit) const {
    return Key(weight(logit) * double(Key{1} << shift) + 0.5);
  }
  __device__ bool has(float logit, Key key) const {
    if (!(logit > -INFINITY) || key < least) return false;
    return min_p <= 0 || key == best_key || weight(logit) >= min_p;
  }
  // Does not fall while the logit falls.
  __device__ int first_bin(float logit) const {
    const double x = (double(best) - logit) / temperature * kBinsPerNat;
    return x < kBins - 1 ? int(x) : kBins - 1;
  }
};

template <bool kCount>
__device__ Key measure(const Candidates& c, float logit) {
  return kCount ? 1 : c.mass(logit);
}

__device__ Key total_mass(Shared& s, const Candidates& c) {
  Key sum = 0;
  for (int i = int(threadIdx.x); i < c.vocab; i += kThreads)
    if (c.has(c.logits[i], key_of(c.logits[i], i))) sum += c.mass(c.logits[i]);
  return block_sum(s.warp_key, sum);
}

// The first candidate, by falling key, at which the sum of the measures of it and those before it
// reaches `target`, which all together do.
template <bool kCount>
__device__ Key reach(Shared& s, const Candidates& c, Key target) {
  Key prefix = 0, known = 0;  // the bits of the key that are settled
  int first_bin = -1;
  for (int level = 0;; ++level) {
    // 53, 42, 31, 20, 9, and the last 9 bits
    const int shift = max(64 - kBinBits * level, 0);
    for (int b = int(threadIdx.x); b < kBins; b += kThreads) {
      s.mass[b] = 0;
      s.count[b] = 0;
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < c.vocab; i += kThreads) {
      const float logit = c.logits[i];
      const Key key = key_of(logit, i);
      if ((key & known) != prefix || !c.has(logit, key)) continue;
      const int coarse = c.first_bin(logit);
      if (level > 0 && coarse != first_bin) continue;
      const int bin = level == 0 ? coarse : kBins - 1 - int(key >> shift & (kBins - 1));
      Key amount = measure<kCount>(c, logit);
      int count = 1;
      // Equal logits would all wait for one bin.
      const unsigned here = __activemask();
      int same = 0;
      __match_all_sync(here, bin, &same);
      if (same && here == ~0u) {
        for (int d = 16; d > 0; d /= 2) amount += __shfl_xor_sync(~0u, amount, d);
        count = threadIdx.x % 32 == 0 ? 32 : 0;
      }
      if (count > 0) {
        atomicAdd(&s.mass[bin], amount);
        atomicAdd(&s.count[bin], count);
      }
    }
    __syncthreads();

    // The bin that reaches the target: two bins a thread, summed over lanes, then warps.
    const int b0 = int(threadIdx.x) * kBinsEach;
    Key sums[kBinsEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) sums[i] = sum += s.mass[b0 + i];
    Key scan = sum;
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    for (int d = 1; d < 32; d *= 2) {
      const Key left = __shfl_up_sync(~0u, scan, d);
      if (lane >= d) scan += left;
    }
    if (lane == 31) s.warp_key[warp] = scan;
    __syncthreads();
    Key before = scan - sum;
    for (int w = 0; w < warp; ++w) before += s.warp_key[w];
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      const Key begin = before + (i > 0 ? sums[i - 1] : 0), end = before + sums[i];
      if (begin < target && target <= end) {
        s.bin = b0 + i;
        s.bin_count = s.count[b0 + i];
        s.before = begin;
      }
    }
    __syncthreads();
    const int bin = s.bin, count = s.bin_count;
    target -= s.before;
    if (level == 0) {
      first_bin = bin;
    } else {
      // The last level's bins overlap bits that are known already; they agree.
      prefix |= Key(kBins - 1 - bin) << shift;
      known |= Key(kBins - 1) << shift;
    }
    if (level > 0 && shift == 0) return prefix;
    if (count > 1) continue;
    for (int i = int(threadIdx.x); i < c.vocab; i += kThreads) {
      const Key key = key_of(c.logits[i], i);
      if ((key & known) == prefix && c.has(c.logits[i], key) &&
          c.first_bin(c.logits[i]) == first_bin)
        s.found = key;
    }
    __syncthreads();
    return s.found;
  }
}

__device__ Key draw(Shared& s, Candidates c, const ops::SampleSettings& setting) {
  if (setting.top_k > 0 && setting.top_k < c.vocab) {
    int count = 0;
    for (int i = int(threadIdx.x); i < c.vocab; i += kThreads)
      count += c.has(c.logits[i], key_of(c.logits[i], i));
    const Key all = block_sum(s.warp_key, Key(count));
    if (Key(setting.top_k) < all) c.least = reach<true>(s, c, Key(setting.top_k));
  }
  if (setting.top_p > 0 && setting.top_p < 1) {
    const double wanted = ceil(double(setting.top_p) * double(total_mass(s, c)));
    c.least = reach<false>(s, c, max(Key(wanted), Key{1}));
  }
  c.min_p = setting.min_p;
  const Key all = total_mass(s, c);
  const Key seed = Key{setting.seed_high} << 32 | setting.seed_low;
  const Key target = Key(uniform(seed, setting.step) * double(all)) + 1;
  return reach<false>(s, c, min(target, all));
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* all_logits, std::int64_t stride, int vocab, int shift,
                  const std::int32_t* settings, std::int64_t settings_stride, std::int32_t* tokens,
                  std::int64_t tokens_stride, float* log_probs, std::int64_t log_probs_stride,
                  std::int32_t* best_tokens, std::int64_t best_stride, float* best_log_probs,
                  std::int64_t best_log_probs_stride, int most) {
  __shared__ Shared s;
  begin_kernel();
  const std::int64_t r = blockIdx.x;
  ops::SampleSettings setting;
  {
    std::int32_t words[ops::kSettingWords];
    for (int i = 0; i < int(ops::kSettingWords); ++i) words[i] = settings[r * settings_stride + i];
    memcpy(&setting, words, sizeof(setting));
  }
  for (int j = int(threadIdx.x); j < most; j += kThreads) {
    best_tokens[r * best_stride + j] = -1;
    best_log_probs[r * best_log_probs_stride + j] = 0;
  }
  if (threadIdx.x == 0) {
    tokens[r * tokens_stride] = -1;
    log_probs[r * log_probs_stride] = 0;
  }
  if (setting.row < 0) return;

  const float* const logits = all_logits + setting.row * stride;
  Key best = 0;
  for (int i = int(threadIdx.x); i < vocab; i += kThreads)
    if (logits[i] > -INFINITY) best = max(best, key_of(logits[i], i));
  best = block_max(s, best);
  if (best == 0 || !isfinite(logits[token_of(best)])) return;
  const float largest = logits[token_of(best)];

  Key chosen = best;
  if (setting.temperature != 0 && setting.top_k != 1)
    chosen = draw(s,
                  {.logits = logits,
                   .vocab = vocab,
                   .shift = shift,
                   .best = largest,
                   .best_key = best,
                   .temperature = double(setting.temperature)},
                  setting);

  const int alternatives = min(setting.alternatives, most);
  double log_sum = 0;
  if (setting.log_prob || alternatives > 0) {
    double sum = 0;
    for (int i = int(threadIdx.x); i < vocab; i += kThreads)
      if (logits[i] > -INFINITY) sum += exp(double(logits[i]) - largest);
    log_sum = log(block_sum(s.warp_sum, sum));
  }
  const auto log_prob = [&](Key key) {
    return float(double(logits[token_of(key)]) - largest - log_sum);
  };
  if (threadIdx.x == 0) {
    tokens[r * tokens_stride] = token_of(chosen);
    if (setting.log_prob) log_probs[r * log_probs_stride] = log_prob(chosen);
  }
  Key last = best;
  for (int j = 0; j < alternatives; ++j) {
    if (j > 0) {
      Key next = 0;
      for (int i = int(threadIdx.x); i < vocab; i += kThreads) {
        const Key key = key_of(logits[i], i);
        if (logits[i] == logits[i] && key < last) next = max(next, key);
      }
      last = block_max(s, next);
    }
    if (last == 0) return;
    if (threadIdx.x == 0) {
      best_tokens[r * best_stride + j] = token_of(last);
      best_log_probs[r * best_log_probs_stride + j] = log_prob(last);
    }
  }
}

}  // namespace

void sample(cudaStream_t stream, const ops::Sample& op) {
  int shift = 62;  // so that `vocab` weights of 1 fit 62 bits
  while ((std::int64_t{1} << (62 - shift)) < op.logits.cols) --shift;
  launch(stream, {.blocks = op.settings.rows, .threads = kThreads}, sample_kernel,
         static_cast<const float*>(op.logits.data), op.logits.row_stride, int(op.logits.cols),
         shift, static_cast<const std::int32_t*>(op.settings.data), op.settings.row_stride,
         static_cast<std::int32_t*>(op.tokens.data), op.tokens.row_stride,
         static_cast<float*>(op.log_probs.data), op.log_probs.row_stride,
         static_cast<std::int32_t*>(op.best.data), op.best.row_stride,
         static_cast<float*>(op.best_log_probs.data), op.best_log_probs.row_stride,
         int(op.best.cols));
}

}  // namespace ostro::cuda
