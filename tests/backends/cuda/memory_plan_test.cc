// What a step takes on a GPU beside its plan: the kernels' memory, and that of CUDA graphs.
#include "plan/memory.h"

#include <gtest/gtest.h>

#include "backends/cuda/gpu_engine.h"

namespace ostro::engine {
namespace {

constexpr std::int64_t kTokens = 2048, kRequests = 256;

model::StepLimits limits_of(const model::EngineConfig& c) {
  return {.tokens = kTokens,
          .requests = kRequests,
          .logit_rows = kRequests,
          .kv_blocks = 0,
          .block_tokens = c.limits.tokens_per_block,
          .context = c.model.context};
}

// Prompts that fill steps, then `requests` sequences of almost the whole context.
void generate(Engine& engine, const model::EngineConfig& c, std::size_t requests,
              std::int64_t tokens) {
  const auto length = std::size_t(c.model.context - tokens - 1);
  for (std::size_t r = 0; r < requests; ++r) {
    std::vector<std::int32_t> prompt(length);
    for (std::size_t i = 0; i < length; ++i)
      prompt[i] = std::int32_t((i * 31 + r * 7) % std::size_t(c.model.vocab));
    engine.submit({.prompt = std::move(prompt), .max_new_tokens = tokens});
  }
  while (!engine.idle()) engine.step();
}

// At most what the plan says, and not much less: the plan is not a guess. Of a dense model it
// counts parts of attention most, which these steps may not need.
TEST(MemoryOnAGpu, KernelsKeepWhatWasPlanned) {
  Format dense = kFp8, int4 = kBf16;
  dense.name = "dense fp8";
  int4.name = "int4, prompts in fp8";
  for (const Format& format : {kBf16, kF32, kFp8, dense, int4}) {
    SCOPED_TRACE(format.name);
    model::EngineConfig c = config(format);
    const bool is_int4 = format.name == int4.name;
    if (is_int4) c.model.quantization.weights = model::Quantization::Format::int4;
    c.model.hidden = 512;
    c.model.inter = 1024;
    c.model.context = 512;
    if (format.name == dense.name) c.model.experts = c.model.top_k = 0;
    model::StepLimits limits = limits_of(c);
    limits.fp8_prompts = is_int4;
    const std::size_t planned = plan::kernel_scratch_bytes(c.model, {}, 0, limits);
    OnGpu gpu(c, {.max_batch_size = kRequests,
                  .max_num_tokens = kTokens,
                  .kv_cache_tokens = kRequests * c.model.context,
                  .fp8_prompts = limits.fp8_prompts});
    Engine engine(gpu.rank, c.model);
    generate(engine, c, 64, 8);
    generate(engine, c, 9, 8);
    const std::size_t kept = cuda::scratch_bytes(*gpu.gpu);
    std::printf("%s: planned %zu bytes, kept %zu\n", format.name, planned, kept);
    EXPECT_LE(kept, planned);
    EXPECT_GE(kept, planned / 6);
  }
}

// The graphs of every batch size of a model with as many layers as Mixtral 8x7B, beside what the
// kernels keep. Kernels that are not loaded yet are brought to the device at their first launch, so
// the same work is done without graphs first.
TEST(MemoryOnAGpu, GraphsTakeNoMoreThanWasPlanned) {
  model::EngineConfig c = config(kFp8);
  c.model.layers = 32;
  c.model.context = 48;  // tables of one block, two and three
  for (const bool graphs : {false, true}) {
    OnGpu gpu(c, {.max_batch_size = kRequests,
                  .max_num_tokens = kTokens,
                  .kv_cache_tokens = kRequests * c.model.context,
                  .record_steps = graphs});
    Engine engine(gpu.rank, c.model);
    const auto taken = [&] {
      gpu.gpu->wait();
      return std::int64_t(gpu.gpu->free_memory_bytes() + cuda::scratch_bytes(*gpu.gpu));
    };
    const std::int64_t before = taken();
    for (std::size_t requests : {256, 224, 192, 160, 128, 96, 64, 48, 32, 24, 16, 8, 4, 2, 1}) {
      for (std::size_t r = 0; r < requests; ++r)
        engine.submit({.prompt = {std::int32_t(r), 5, 6}, .max_new_tokens = 40});
      while (!engine.idle()) engine.step();
    }
    const std::int64_t bytes = before - taken();
    const auto planned = std::int64_t(gpu.rank.limits().most_recorded_bytes);
    std::printf("graphs %d: planned %lld bytes, taken %lld\n", graphs, (long long)planned,
                (long long)bytes);
    if (!graphs) continue;
    EXPECT_LE(bytes, planned);
    EXPECT_GE(bytes, planned / 3);
  }
}

}  // namespace
}  // namespace ostro::engine
