#include "backends/cpu/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "backends/cpu/ceilings.h"

namespace ostro::cpu {

const BenchShape kTiny = {"tiny", 256, 384, 8, 4, 64, 8, 2, 8192};
const BenchShape kMid = {"mid", 1024, 3584, 16, 4, 64, 8, 2, 32000};
const BenchShape kMixtral = {"8x7B", 4096, 14336, 32, 8, 128, 8, 2, 32000};

namespace {

constexpr std::size_t kPoolBytes = std::size_t{768} << 20;
constexpr std::int64_t kBlockTokens = 32;

class Bench {
 public:
  Bench(ops::Backend& backend, const BenchShape& shape, const BenchWork& work,
        const std::function<void(const Timing&)>& report)
      : backend_(backend),
        s_(shape),
        w_(work),
        report_(report),
        pool_(backend.allocate(kPoolBytes)) {
    // A few thousand random values, repeated: filling gigabytes with a generator takes seconds.
    std::vector<float> values(1 << 16);
    std::normal_distribution<float> normal(0, 0.05f);
    for (float& v : values) v = normal(random_);
    char* data = static_cast<char*>(pool_.data());
    const std::size_t chunk = values.size() * size_of(w_.dtype);
    convert(values.data(), DType::f32, data, w_.dtype, values.size());
    for (std::size_t at = chunk; at + chunk <= kPoolBytes; at += chunk)
      std::copy_n(data, chunk, data + at);
  }

  void run() {
    const std::int64_t t = w_.tokens, size = std::int64_t(size_of(w_.dtype));
    const View x = activations(t, s_.hidden);
    const View residual = zeros(DType::f32, t, s_.hidden);
    const View branch = zeros(DType::f32, t, s_.hidden);
    const View norm = activations(1, s_.hidden);
    const View y = zeros(w_.dtype, t, s_.hidden);
    time("add_rms_norm", double(t * s_.hidden) * (12 + double(size)), 0, [&] {
      backend_.run(ops::AddRmsNorm{branch, residual, norm, y, 1e-5f});
    });

    const std::int64_t qkv_cols = (s_.heads + 2 * s_.kv_heads) * s_.head_dim;
    const View qkv = activations(t, qkv_cols);
    linear("qkv", x, qkv, t);
    attention(qkv);
    linear("o", activations(t, s_.heads * s_.head_dim), branch, t);
    linear("lm_head", x.rows_of({0, w_.prefill ? 1 : t}),
           zeros(DType::f32, w_.prefill ? 1 : t, s_.vocab), w_.prefill ? 1 : t);
    experts(x);
  }

 private:
  template <class Fn>
  void time(const std::string& name, double bytes, double multiply_adds, Fn&& fn) {
    if (name.find(w_.only) == std::string::npos) return;
    fn();
    std::vector<double> runs;
    const double begin = bench_clock(w_.processor_time);
    for (double start = begin;
         runs.size() < 3 || (start < begin + w_.seconds && runs.size() < 10000);) {
      fn();
      backend_.wait();
      const double end = bench_clock(w_.processor_time);
      runs.push_back(end - start);
      start = end;
    }
    std::sort(runs.begin(), runs.end());
    report_({name, runs.front(), runs[runs.size() / 2], bytes, multiply_adds});
  }

  void linear(const std::string& name, const View& x, const View& y, std::int64_t t) {
    const double size = double(size_of(w_.dtype));
    time(name, double(y.cols * x.cols) * size, double(t * y.cols * x.cols), [&] {
      backend_.run(ops::Linear{x, {weight(y.cols, x.cols), {}}, y});
    });
  }

  void attention(const View& qkv) {
    const std::int64_t requests = w_.prefill ? 1 : w_.tokens;
    const std::int64_t context = w_.prefill ? w_.tokens : w_.context;
    const std::int64_t blocks = ceil_div(context, kBlockTokens);
    const View start = zeros(DType::i32, 1, requests + 1);
    const View length = zeros(DType::i32, 1, requests);
    const View table = zeros(DType::i32, requests, blocks);
    const std::int64_t rows = requests * blocks * s_.kv_heads * kBlockTokens;
    const View k = activations(rows, s_.head_dim), v = activations(rows, s_.head_dim);
    const auto queries = std::int32_t(w_.tokens / requests);
    std::vector<std::int32_t> shuffled(std::size_t(requests * blocks));
    for (std::size_t i = 0; i < shuffled.size(); ++i) shuffled[i] = std::int32_t(i);
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
    for (std::int64_t r = 0; r < requests; ++r) {
      start.as<std::int32_t>()[r + 1] = std::int32_t(r + 1) * queries;
      length.as<std::int32_t>()[r] = std::int32_t(context);
      for (std::int64_t b = 0; b < blocks; ++b)
        table.row<std::int32_t>(r)[b] = shuffled[std::size_t(r * blocks + b)];
    }
    const ops::Requests step{start, length, table};
    const ops::KvCache cache{k, v, s_.kv_heads, kBlockTokens};
    const View cos_sin = zeros(DType::f32, w_.tokens, s_.head_dim);
    const double size = double(size_of(w_.dtype));
    time("rotary_append", double(qkv.rows * qkv.cols) * 2 * size, 0, [&] {
      backend_.run(ops::RotaryAppend{qkv, cos_sin, step, cache, s_.heads});
    });
    const View y = zeros(w_.dtype, w_.tokens, s_.heads * s_.head_dim);
    const double seen =
        w_.prefill ? double(context) * double(context + 1) / 2 : double(requests * context);
    time("attention", double(requests * context * s_.kv_heads * s_.head_dim) * 2 * size,
         seen * double(s_.heads * s_.head_dim) * 2, [&] {
           backend_.run(ops::PagedAttention{qkv.cols_of({0, s_.heads * s_.head_dim}), step, cache,
                                            y, s_.heads, 1 / std::sqrt(float(s_.head_dim)), 0});
         });
  }

  void experts(const View& x) {
    const std::int64_t t = x.rows;
    const View chosen = zeros(DType::i32, t, s_.top_k), weights = zeros(DType::f32, t, s_.top_k);
    time("route", double(s_.experts * s_.hidden) * double(size_of(w_.dtype)),
         double(t * s_.experts * s_.hidden), [&] {
           backend_.run(ops::Route{x, {weight(s_.experts, s_.hidden), {}}, chosen, weights, true});
         });
    std::vector<bool> active(std::size_t(s_.experts));
    for (std::int64_t i = 0; i < t; ++i) {
      std::vector<std::int32_t> all(std::size_t(s_.experts));
      for (std::size_t e = 0; e < all.size(); ++e) all[e] = std::int32_t(e);
      std::shuffle(all.begin(), all.end(), random_);
      for (std::int64_t j = 0; j < s_.top_k; ++j) {
        chosen.row<std::int32_t>(i)[j] = all[std::size_t(j)];
        weights.row<float>(i)[j] = 1.0f / float(s_.top_k);
        active[std::size_t(all[std::size_t(j)])] = true;
      }
    }
    const auto count = std::count(active.begin(), active.end(), true);
    const double expert = 3.0 * double(s_.hidden * s_.inter);
    const View y = zeros(DType::f32, t, s_.hidden);
    std::vector<ops::Expert> local(std::size_t(s_.experts));
    time(text("expert_mlp (", count, " active)"),
         double(count) * expert * double(size_of(w_.dtype)), double(t * s_.top_k) * expert, [&] {
           for (ops::Expert& e : local)
             e = {{weight(s_.inter, s_.hidden), {}},
                  {weight(s_.inter, s_.hidden), {}},
                  {weight(s_.hidden, s_.inter), {}}};
           backend_.run(ops::ExpertMlp{x, chosen, weights, local, 0, y});
         });
  }

  // The next weights of the pool.
  View weight(std::int64_t n, std::int64_t k) {
    const std::size_t bytes = std::size_t(n * k) * size_of(w_.dtype);
    if (next_ + bytes > kPoolBytes) next_ = 0;
    const View v = pool_.view(w_.dtype, n, k, next_);
    next_ += round_up<std::size_t>(bytes, 64);
    return v;
  }
  View zeros(DType dtype, std::int64_t rows, std::int64_t cols) {
    const std::size_t bytes = std::size_t(rows * cols) * size_of(dtype);
    buffers_.push_back(backend_.allocate(std::max<std::size_t>(bytes, 64)));
    return buffers_.back().view(dtype, rows, cols);
  }
  View activations(std::int64_t rows, std::int64_t cols) {
    const View v = zeros(w_.dtype, rows, cols);
    char* to = static_cast<char*>(v.data);
    const auto* from = static_cast<const char*>(pool_.data());
    for (std::size_t done = 0; done < v.bytes();) {
      const std::size_t part = std::min(v.bytes() - done, kPoolBytes / 2);
      std::copy_n(from + (buffers_.size() % 64) * 64, part, to + done);
      done += part;
    }
    return v;
  }

  ops::Backend& backend_;
  const BenchShape& s_;
  const BenchWork& w_;
  const std::function<void(const Timing&)>& report_;
  Buffer pool_;
  std::size_t next_ = 0;
  std::vector<Buffer> buffers_;
  std::mt19937 random_{1};
};

}  // namespace

void time_kernels(ops::Backend& backend, const BenchShape& shape, const BenchWork& work,
                  const std::function<void(const Timing&)>& report) {
  OSTRO_REQUIRE(backend.device() == Device::cpu, "time_kernels fills host memory");
  Bench(backend, shape, work, report).run();
}

}  // namespace ostro::cpu
