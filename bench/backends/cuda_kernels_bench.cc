// Times the CUDA backend's ops at Mixtral 8x7B's shapes, with random data, random routing and
// weights that rotate through more memory than L2 holds; prints each beside its limit, and what the
// operations of a whole step sum to, for `ostro bench latency` to be compared with.
//
//   cuda_kernels_bench [bf16, default, f8e4m3, int8, int4 or int4_e4m3 (int4 with activations of
//                      e4m3): of the weights of layers; or attention: that alone]
//                      [read GB/s, default 3150] [TFLOP/s, default 757, of e4m3 1385]
//                      [tokens of a step ..., default 1 to 8192]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "backends/cuda/backend.h"
#include "base/clock.h"
#include "quant/int4.h"

namespace {

using namespace ostro;

constexpr std::int64_t kHidden = 4096, kInter = 14336, kExperts = 8, kTopK = 2, kHeads = 32,
                       kKvHeads = 8, kHeadDim = 128, kVocab = 32000;
constexpr std::size_t kCopies = 4;  // of each weight: the experts are 2.8 GB a copy

class Bench {
 public:
  Bench(DType layers, ops::Activations activations, double read_bytes, double flops)
      : layers_(layers), activations_(activations), read_bytes_(read_bytes), flops_(flops) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (bf16& b : noise_) b = to_bf16(uniform(rng_));
    for (f8e4m3& b : noise_e4m3_) b = to_f8e4m3(400 * uniform(rng_));
    for (f8e4m3& b : keys_e4m3_) b = to_f8e4m3(uniform(rng_));
    std::printf("%s, %s weights%s; limits: %.0f GB/s, %.0f TFLOP/s\n", gpu_->description().c_str(),
                std::string(layers == DType::u8 ? "int4" : name(layers)).c_str(),
                activations == ops::Activations::as_is ? "" : ", e4m3 activations",
                read_bytes / 1e9, flops / 1e12);
    std::printf("%-24s %7s %12s %9s %9s %9s\n", "", "tokens", "us", "GB/s", "TFLOP/s", "of limit");
  }

  void make_weights() {
    for (std::size_t i = 0; i < kCopies; ++i) {
      qkv_.push_back(weight((kHeads + 2 * kKvHeads) * kHeadDim, kHidden));
      o_.push_back(weight(kHidden, kHidden));
      head_.push_back(weight(kVocab, kHidden, DType::bf16));
      router_.push_back(weight(kExperts, kHidden, DType::bf16));
      experts_.emplace_back();
      for (std::int64_t e = 0; e < kExperts; ++e)
        experts_.back().push_back(
            {weight(kInter, kHidden), weight(kInter, kHidden), weight(kHidden, kInter)});
    }
  }

  // A step of up to 256 requests that have a token each, or of one prompt.
  void run(std::int64_t tokens) {
    const bool decode = tokens <= 256;
    const View x = random(tokens, kHidden);
    double layer = linear("qkv", qkv_, x, DType::bf16) + linear("o", o_, x, DType::f32);
    const double head = decode ? linear("lm_head", head_, x, DType::f32) : 0;
    norm(x);
    route(x);
    experts(x);
    layer += feed_forward(x);
    layer += attention({decode ? Part{tokens, 1, 192} : Part{1, tokens, tokens}}, DType::bf16);
    std::printf("%-24s %7lld %12.1f  (qkv, rotary append, attention, o, feed-forward%s)\n",
                "sum of 32 layers", static_cast<long long>(tokens), (32 * layer + head) * 1e6,
                decode ? "; lm_head" : "");
  }

  // So many requests that each have `queries` new tokens at the end of `context`.
  struct Part {
    std::int64_t requests, queries, context;
  };

  // One step of them; the time of attention and, of a bf16 cache, of appending to it. `single`: as
  // ops::Requests::single.
  double attention(const std::vector<Part>& parts, DType type, std::int64_t single = 0) {
    constexpr std::int64_t kBlock = 64;
    std::int64_t requests = 0, each = 0, positions = 0;
    double seen = 0;
    std::vector<std::int32_t> start{0}, length;
    for (const Part& p : parts) {
      for (std::int64_t r = 0; r < p.requests; ++r) {
        start.push_back(start.back() + std::int32_t(p.queries));
        length.push_back(std::int32_t(p.context));
      }
      requests += p.requests;
      positions += p.requests * p.context;
      each = std::max(each, ceil_div(p.context, kBlock));
      seen += double(p.requests) *
              (double(p.queries) * double(p.context) - double(p.queries * (p.queries - 1)) / 2);
    }
    const std::int64_t tokens = start.back();
    auto table = std::vector<std::int32_t>(std::size_t(requests * each));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), rng_);
    const std::int64_t rows = requests * each * kKvHeads * kBlock;
    std::vector<std::int32_t> rest(start.begin() + single, start.end());
    for (std::int32_t& r : rest) r -= std::int32_t(single);
    const ops::Requests r{.query_start = ints(start, 1),
                          .context_len = ints(length, 1),
                          .block_table = ints(table, requests),
                          .single = single,
                          .rest_start = ints(rest, 1)};
    const ops::KvCache cache{.k = cached(rows, type),
                             .v = cached(rows, type),
                             .kv_heads = kKvHeads,
                             .block_tokens = kBlock};
    const View qkv = random(tokens, (kHeads + 2 * kKvHeads) * kHeadDim);
    const View y = random(tokens, kHeads * kHeadDim), angles = memory(DType::f32, tokens, kHeadDim);
    const std::string name =
        text("attention of ", parts.front().context, type == DType::f8e4m3 ? ", e4m3" : "",
             parts.size() == 1 ? ""
             : single > 0      ? ", + chunk"
                               : ", + chunk, untold");
    const double s =
        time(name, tokens, 2.0 * double(size_of(type)) * double(positions * kKvHeads * kHeadDim),
             4.0 * seen * double(kHeads * kHeadDim), [&](std::size_t) {
               gpu_->run(ops::PagedAttention{.q = qkv.cols_of({0, kHeads * kHeadDim}),
                                             .requests = r,
                                             .cache = cache,
                                             .y = y,
                                             .heads = kHeads,
                                             .scale = 0.088388f,
                                             .window = 0});
             });
    if (type == DType::f8e4m3) return s;
    return s +
           time("rotary append", tokens, 4.0 * double(qkv.rows * qkv.cols), 0, [&](std::size_t) {
             gpu_->run(ops::RotaryAppend{
                 .qkv = qkv, .cos_sin = angles, .requests = r, .cache = cache, .heads = kHeads});
           });
  }

  void clear() { step_.clear(); }

 private:
  View memory(DType dtype, std::int64_t rows, std::int64_t cols) {
    step_.push_back(gpu_->allocate(std::size_t(rows * cols) * size_of(dtype)));
    return step_.back().view(dtype, rows, cols);
  }
  void fill(const View& v) {
    fill(v, v.dtype == DType::bf16 ? static_cast<void*>(noise_.data())
                                   : static_cast<void*>(noise_e4m3_.data()));
  }
  void fill(const View& v, void* noise) {
    const View flat = matrix(v.data, v.dtype, 1, v.rows * v.cols, v.device);
    const auto n = std::int64_t(noise_.size());
    for (std::int64_t at = 0; at < flat.cols; at += n) {
      const std::int64_t count = std::min(n, flat.cols - at);
      gpu_->copy(matrix(noise, v.dtype, 1, count), flat.cols_of({at, at + count}));
    }
  }
  View random(std::int64_t rows, std::int64_t cols, DType type = DType::bf16) {
    const View v = memory(type, rows, cols);
    fill(v);
    return v;
  }
  // Keys or values: of magnitude 1, as a model's.
  View cached(std::int64_t rows, DType type) {
    if (type == DType::bf16) return random(rows, kHeadDim);
    const View v = memory(type, rows, kHeadDim);
    fill(v, keys_e4m3_.data());
    return v;
  }
  View ints(const std::vector<std::int32_t>& values, std::int64_t rows) {
    const View v = memory(DType::i32, rows, std::int64_t(values.size()) / rows);
    gpu_->copy(matrix(const_cast<std::int32_t*>(values.data()), DType::i32, v.rows, v.cols), v);
    return v;
  }
  quant::Weight weight(std::int64_t n, std::int64_t k) { return weight(n, k, layers_); }
  quant::Weight weight(std::int64_t n, std::int64_t k, DType type) {
    const bool int4 = type == DType::u8;
    const std::int64_t cols = int4 ? k / 2 : k;
    weights_.push_back(gpu_->allocate(std::size_t(n * cols) * size_of(type)));
    const View v = weights_.back().view(type, n, cols);
    fill(v);
    if (type == DType::bf16) return {.data = v, .scale = {}};
    const View scale =
        int4 ? owned(DType::bf16, n, k / quant::kInt4Group) : owned(DType::f32, 1, n);
    if (int4) {
      fill(scale);
      return {.data = v, .scale = scale};
    }
    std::vector<float> ones(std::size_t(n), 1e-3f);
    gpu_->copy(matrix(ones.data(), DType::f32, 1, n), scale);
    gpu_->wait();
    return {.data = v, .scale = scale};
  }
  View owned(DType type, std::int64_t rows, std::int64_t cols) {
    weights_.push_back(gpu_->allocate(std::size_t(rows * cols) * size_of(type)));
    return weights_.back().view(type, rows, cols);
  }
  ops::Activations activations(const quant::Weight& w) const {
    return w.data.dtype == layers_ ? activations_ : ops::Activations::as_is;
  }
  // Of n k weights and their scales.
  static double bytes_of(DType type, double weights) {
    return type == DType::u8 ? weights * (0.5 + 2.0 / double(quant::kInt4Group))
                             : weights * double(size_of(type));
  }

  double linear(const std::string& name, const std::vector<quant::Weight>& w, const View& x,
                DType out) {
    const std::int64_t n = w[0].n(), k = w[0].k();
    const View y = memory(out, x.rows, n);
    return time(name, x.rows,
                bytes_of(w[0].data.dtype, double(n * k)) + 2.0 * double(x.rows * k) +
                    double(size_of(out)) * double(x.rows * n),
                2.0 * double(n * k * x.rows), [&](std::size_t i) {
                  gpu_->run(ops::Linear{
                      .x = x, .w = w[i % w.size()], .y = y, .activations = activations(w[0])});
                });
  }

  void norm(const View& x) {
    const View branch = memory(DType::f32, x.rows, kHidden),
               residual = memory(DType::f32, x.rows, kHidden),
               y = memory(DType::bf16, x.rows, kHidden), w = random(1, kHidden);
    time("add + norm", x.rows, 14.0 * double(x.rows * kHidden), 0, [&](std::size_t) {
      gpu_->run(
          ops::AddRmsNorm{.x = branch, .residual = residual, .weight = w, .y = y, .eps = 1e-5f});
    });
  }

  void route(const View& x) {
    const View chosen = memory(DType::i32, x.rows, kTopK), w = memory(DType::f32, x.rows, kTopK);
    time("router", x.rows, 2.0 * double(x.rows * kHidden), 0, [&](std::size_t i) {
      gpu_->run(
          ops::Route{.x = x, .router = router_[i % kCopies], .experts = chosen, .weights = w});
    });
  }

  void experts(const View& x) {
    const View y = memory(DType::f32, x.rows, kHidden);
    std::vector<View> chosen, w;
    double used = 0;
    constexpr std::size_t kRoutings = 8;
    for (std::size_t i = 0; i < kRoutings; ++i) {
      std::vector<std::int32_t> e;
      for (std::int64_t t = 0; t < x.rows; ++t) {
        const auto first = std::int32_t(rng_() % kExperts);
        e.push_back(first);
        e.push_back((first + 1 + std::int32_t(rng_() % (kExperts - 1))) % std::int32_t(kExperts));
      }
      used += double(std::set<std::int32_t>(e.begin(), e.end()).size()) / kRoutings;
      chosen.push_back(ints(e, x.rows));
      w.push_back(memory(DType::f32, x.rows, kTopK));
    }
    const double expert = 3.0 * double(kHidden * kInter);
    time(text("experts (", used, " of 8)"), x.rows, bytes_of(layers_, used * expert),
         2.0 * double(kTopK * x.rows) * expert, [&](std::size_t i) {
           gpu_->run(ops::ExpertMlp{.x = x,
                                    .experts = chosen[i % kRoutings],
                                    .weights = w[i % kRoutings],
                                    .local = experts_[i % kCopies],
                                    .first_expert = 0,
                                    .y = y,
                                    .activations = activations(experts_[0][0].gate)});
         });
  }

  // A layer from the sum of its attention to the next layer's norm, where its own router leads.
  double feed_forward(const View& x) {
    std::vector<float> row(std::size_t(x.rows * kHidden));
    std::normal_distribution<float> normal;
    for (float& r : row) r = normal(rng_);
    const View residual = memory(DType::f32, x.rows, kHidden),
               next = memory(DType::f32, x.rows, kHidden), y = memory(DType::f32, x.rows, kHidden),
               weight = random(1, kHidden), chosen = memory(DType::i32, x.rows, kTopK),
               weights = memory(DType::f32, x.rows, kTopK),
               h = memory(DType::bf16, x.rows, kHidden);
    gpu_->copy(matrix(row.data(), DType::f32, x.rows, kHidden), residual);
    const auto run = [&](std::size_t i) {
      const auto& experts = experts_[i % kCopies];
      const ops::Activations rounding = activations(experts[0].gate);
      const ops::Activations norms = layers_ == DType::f8e4m3 ? rounding : ops::Activations::as_is;
      gpu_->run(ops::MoeBlock{
          .norm = {.x = {},
                   .residual = residual,
                   .weight = weight,
                   .y = h,
                   .eps = 1e-5f,
                   .activations = norms},
          .route = {.x = h, .router = router_[i % kCopies], .experts = chosen, .weights = weights},
          .mlp = {.x = h,
                  .experts = chosen,
                  .weights = weights,
                  .local = experts,
                  .first_expert = 0,
                  .y = y,
                  .activations = rounding},
          .next = {.x = y,
                   .residual = next,
                   .weight = weight,
                   .y = h,
                   .eps = 1e-5f,
                   .activations = norms,
                   .for_products = norms != ops::Activations::as_is}});
    };
    double used = 0;
    for (std::size_t i = 0; i < kCopies; ++i) {
      std::vector<std::int32_t> e(std::size_t(x.rows * kTopK));
      run(i);
      gpu_->copy(chosen, matrix(e.data(), DType::i32, x.rows, kTopK));
      gpu_->wait();
      used += double(std::set<std::int32_t>(e.begin(), e.end()).size()) / kCopies;
    }
    const double expert = 3.0 * double(kHidden * kInter);
    return time(text("feed-forward (", used, ")"), x.rows, bytes_of(layers_, used * expert),
                2.0 * double(kTopK * x.rows) * expert, run);
  }

  // The median of repetitions of enough runs to hide the host's time, in seconds.
  template <class Run>
  double time(const std::string& name, std::int64_t tokens, double bytes, double flops, Run&& run) {
    const double limit = std::max(bytes / read_bytes_, flops / flops_);
    const int runs = int(std::clamp(0.02 / std::max(limit, 5e-6), 8.0, 400.0)) / 8 * 8;
    for (std::size_t i = 0; i < 8; ++i) run(i);
    gpu_->wait();
    std::vector<double> seconds;
    for (int repetition = 0; repetition < 5; ++repetition) {
      const Stopwatch watch;
      for (int i = 0; i < runs; ++i) run(std::size_t(i));
      gpu_->wait();
      seconds.push_back(watch.seconds() / runs);
    }
    std::sort(seconds.begin(), seconds.end());
    const double s = seconds[2];
    std::printf("%-24s %7lld %12.1f %9.0f %9.1f %8.0f %%\n", name.c_str(),
                static_cast<long long>(tokens), s * 1e6, bytes / s / 1e9, flops / s / 1e12,
                100 * limit / s);
    std::fflush(stdout);
    return s;
  }

  DType layers_;
  ops::Activations activations_;  // of layers' products
  double read_bytes_, flops_;
  std::unique_ptr<ops::Backend> gpu_ = cuda::make_backend();
  std::mt19937 rng_{1};
  std::vector<bf16> noise_ = std::vector<bf16>((std::size_t{1} << 20) + 77);
  std::vector<f8e4m3> noise_e4m3_ = std::vector<f8e4m3>(noise_.size());
  std::vector<f8e4m3> keys_e4m3_ = std::vector<f8e4m3>(noise_.size());
  std::vector<Buffer> weights_, step_;
  std::vector<quant::Weight> qkv_, o_, head_, router_;
  std::vector<std::vector<ops::Expert>> experts_;
};

}  // namespace

int main(int argc, char** argv) try {
  const std::string what = argc > 1 ? argv[1] : "bf16";
  const bool e4m3 = what.ends_with("e4m3");
  const DType layers = what == "f8e4m3"           ? DType::f8e4m3
                       : what == "int8"           ? DType::i8
                       : what.starts_with("int4") ? DType::u8
                                                  : DType::bf16;
  Bench bench(layers, e4m3 ? ops::Activations::e4m3_per_token : ops::Activations::as_is,
              1e9 * (argc > 2 ? std::atof(argv[2]) : 3150),
              1e12 * (argc > 3 ? std::atof(argv[3])
                      : e4m3   ? 1385
                               : 757));
  std::vector<std::int64_t> steps;
  for (int i = 4; i < argc; ++i) steps.push_back(std::atoll(argv[i]));
  if (steps.empty()) steps = {1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
  if (what != "attention") {
    bench.make_weights();
    for (std::int64_t tokens : steps) {
      bench.run(tokens);
      bench.clear();
    }
  }
  if (layers != DType::bf16) return 0;  // the rest has no weights
  for (DType cache : {DType::bf16, DType::f8e4m3}) {
    constexpr std::int64_t kMostPositions = 128 * 8192;  // 4.3 GB of bf16
    for (std::int64_t requests : {1, 8, 32, 64, 128, 256, 1024})
      for (std::int64_t context : {192, 1024, 8192}) {
        if (requests * context > kMostPositions) continue;
        bench.attention({{requests, 1, context}}, cache);
        bench.clear();
      }
    for (std::int64_t tokens : {512, 2048, 8192}) {
      bench.attention({{1, tokens, tokens}}, cache);
      bench.clear();
    }
    for (std::int64_t single : {0, 256}) {
      bench.attention({{256, 1, 1024}, {1, 256, 256}}, cache, single);
      bench.clear();
    }
  }
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
