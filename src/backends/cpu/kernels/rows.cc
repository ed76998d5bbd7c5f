// Row by row: AddRmsNorm, the rotation of RotaryAppend, the epilogues of Linear and ExpertMlp, and
// the choice of Route. Each reads its row once or twice from L1 or L2; none is a hot spot.
#include "backends/cpu/kernels/families.h"
#include "backends/cpu/kernels/simd.h"

namespace ostro::cpu::OSTRO_ISA {
namespace {

// Calls fn(i, lanes...) for whole vectors, then once for the rest: load and store take what
// `lanes` holds, nothing or a count.
template <class Fn>
inline void over(std::int64_t n, Fn&& fn) {
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) fn(i);
  if (i < n) fn(i, n - i);
}

// Of quant/e4m3.h.
constexpr float kMaxE4m3 = 448;
constexpr float kLeastAmax = 1e-10f;

}  // namespace

void store_rows(const StoreRows& s) {
  with_element(s.type, [&]<class T>(T) {
    for (std::int64_t m = 0; m < s.m; ++m) {
      const float* from = s.from + m * s.from_stride;
      T* to = at<T>(s.to, m * s.to_stride);
      over(s.n, [&](std::int64_t i, auto... lanes) {
        const Vec v = load(from + i, lanes...);
        store(to + i, s.scale ? mul(v, load(s.scale + i, lanes...)) : v, lanes...);
      });
    }
  });
}

void round_e4m3(const RoundE4m3& r) {
  with_element(r.type, [&]<class T>(T) {
    for (std::int64_t g = 0; g < r.n; g += r.group) {
      const std::int64_t n = r.group < r.n - g ? r.group : r.n - g;
      const T* from = at<T>(r.from, g);
      float* to = r.to + g;
      Vec tops = set1(kLeastAmax);
      over(n, [&](std::int64_t i, auto... lanes) {
        // In this order of operands a NaN is passed over.
        tops = max(abs(load(from + i, lanes...)), tops);
      });
      const float amax = reduce_max(tops);
      const Vec factor = set1(kMaxE4m3 / amax), scale = set1(amax / kMaxE4m3);
      over(n, [&](std::int64_t i, auto... lanes) {
        E4m3 rounded[kWidth];
        store(rounded, mul(load(from + i, lanes...), factor));
        store(to + i, mul(load(rounded), scale), lanes...);
      });
    }
  });
}

void narrow_e4m3(const void* from, Element type, void* to, std::int64_t n) {
  with_element(type, [&]<class T>(T) {
    over(n, [&](std::int64_t i, auto... lanes) {
      store(at<E4m3>(to, i), load(at<T>(from, i), lanes...), lanes...);
    });
  });
}

void widen_row(const void* from, Element type, float* to, std::int64_t n) {
  with_element(type, [&]<class T>(T) {
    over(n, [&](std::int64_t i, auto... lanes) {
      store(to + i, load(at<T>(from, i), lanes...), lanes...);
    });
  });
}

void swiglu(const SwiGlu& s) {
  with_element(s.type, [&]<class T>(T) {
    for (std::int64_t m = 0; m < s.m; ++m) {
      const float* gate = s.gate + m * s.stride;
      const float* up = s.up + m * s.stride;
      T* h = at<T>(s.h, m * s.h_stride);
      over(s.n, [&](std::int64_t i, auto... lanes) {
        Vec z = load(gate + i, lanes...), u = load(up + i, lanes...);
        if (s.gate_scale) z = mul(z, load(s.gate_scale + i, lanes...));
        if (s.up_scale) u = mul(u, load(s.up_scale + i, lanes...));
        const Vec silu = div(z, add(set1(1.0f), exp(sub(zero(), z))));
        store(h + i, mul(silu, u), lanes...);
      });
    }
  });
}

void combine(const Combine& c) {
  over(c.n, [&](std::int64_t i, auto... lanes) {
    Vec sum = zero();
    for (std::int64_t j = 0; j < c.top_k; ++j)
      if (c.slots[j] >= 0)
        sum = fma(set1(c.weights[j]), load(c.from + c.slots[j] * c.from_stride + i, lanes...), sum);
    store(c.y + i, sum, lanes...);
  });
}

// Two passes over the row; the second finds it in L1 up to hidden = 8192. Four chains of sums.
void add_rms_norm(const NormRow& r) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  int chain = 0;
  over(r.hidden, [&](std::int64_t i, auto... lanes) {
    Vec v = load(r.residual + i, lanes...);
    if (r.x) {
      v = add(v, load(r.x + i, lanes...));
      store(r.residual + i, v, lanes...);
    }
    sums[chain & 3] = fma(v, v, sums[chain & 3]);
    ++chain;
  });
  if (!r.y) return;
  const float sum = reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  const Vec scale = set1(1.0f / __builtin_sqrtf(sum / static_cast<float>(r.hidden) + r.eps));
  with_element(r.weight_type, [&]<class W>(W) {
    with_element(r.y_type, [&]<class Y>(Y) {
      over(r.hidden, [&](std::int64_t i, auto... lanes) {
        const Vec v = mul(load(r.residual + i, lanes...), scale);
        store(at<Y>(r.y, i), mul(load(at<W>(r.weight, i), lanes...), v), lanes...);
      });
    });
  });
}

// Softmax over the experts, then top_k times the largest that is left, lowest index first.
void route(const RouteRow& r) {
  Vec top = set1(-__builtin_inff());
  float highest = -__builtin_inff();
  over(r.count, [&](std::int64_t i, auto... lanes) {
    if constexpr (sizeof...(lanes) == 0)
      top = max(top, load(r.logits + i));
    else
      for (std::int64_t j = i; j < r.count; ++j)
        highest = highest < r.logits[j] ? r.logits[j] : highest;
  });
  const float in_vectors = reduce_max(top);
  highest = highest < in_vectors ? in_vectors : highest;
  Vec sums = zero();
  over(r.count, [&](std::int64_t i, auto... lanes) {
    Vec e = exp(sub(load(r.logits + i, lanes...), set1(highest)));
    if constexpr (sizeof...(lanes) == 1) e = keep_lanes(e, 0, r.count - i);
    store(r.logits + i, e, lanes...);
    sums = add(sums, e);
  });
  const float total = reduce_add(sums);

  float chosen = 0;
  for (std::int64_t j = 0; j < r.top_k; ++j) {
    std::int64_t best = -1;
    float value = 0;
    for (std::int64_t e = 0; e < r.count; ++e)  // -1 marks a chosen one; NaN is never larger
      if (r.logits[e] != -1 && (best < 0 || r.logits[e] > value)) {
        value = r.logits[e];
        best = e;
      }
    r.experts[j] = static_cast<std::int32_t>(best);
    r.weights[j] = value;
    chosen += value;
    r.logits[best] = -1;
  }
  const float divisor = r.renormalize ? chosen : total;
  for (std::int64_t j = 0; j < r.top_k; ++j) r.weights[j] /= divisor;
}

namespace {

template <class From, class To>
void rotate(const RotateHeads& r) {
  const std::int64_t half = r.head_dim / 2;
  for (std::int64_t h = 0; h < r.heads; ++h) {
    const From* from = at<From>(r.from, h * r.from_stride);
    To* to = at<To>(r.to, h * r.to_stride);
    over(half, [&](std::int64_t i, auto... lanes) {
      const Vec a = load(from + i, lanes...), b = load(from + half + i, lanes...);
      const Vec c = load(r.cos_sin + i, lanes...), s = load(r.cos_sin + half + i, lanes...);
      store(to + i, sub(mul(a, c), mul(b, s)), lanes...);
      store(to + half + i, add(mul(b, c), mul(a, s)), lanes...);
    });
  }
}

}  // namespace

void rotate_heads(const RotateHeads& r) {
  with_element(r.type, [&]<class T>(T) {
    if (r.to_type == Element::e4m3)
      rotate<T, E4m3>(r);
    else
      rotate<T, T>(r);
  });
}

}  // namespace ostro::cpu::OSTRO_ISA
