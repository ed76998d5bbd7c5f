#include "plan/work.h"

#include <gtest/gtest.h>

namespace ostro::plan {
namespace {

using Format = model::Quantization::Format;

// 8x7B by hand: attention 4096 x (4096 + 1024) x 2 = 41.9 M weights a layer, an expert 3 x 4096 x
// 14336 = 176.2 M, head 131.1 M, 1024 keys and as many values of a token in each of 32 layers.
TEST(WorkOfStep, CountsTheBytesOfEachFormat) {
  model::ModelConfig c = model::preset("mixtral-8x7b");
  const double attention = 41'943'040, expert = 176'160'768, head = 131'072'000, kv = 2 * 1024;
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1).experts, 2);
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1).bytes, 2 * (32 * (attention + 2 * expert) + head));
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1, 500).bytes - work_of_step(c, 1, 1).bytes,
                   32 * 500 * kv * 2);

  // A byte an element and a float an output row: 6144 + 4096 of attention, 2 x 14336 + 4096 of an
  // expert. The head stays.
  c.quantization.weights = Format::fp8;
  const double scales = 4 * (6144 + 4096 + 2 * (2 * 14336 + 4096));
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1).bytes, 32 * (attention + 2 * expert + scales) + 2 * head);
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1, 500).bytes - work_of_step(c, 1, 1).bytes,
                   32 * 500 * kv * 2);
  c.quantization.weights = Format::int8;
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1).bytes, 32 * (attention + 2 * expert + scales) + 2 * head);
  // Half a byte an element, two bytes for 128.
  c.quantization.weights = Format::int4;
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1).bytes,
                   32 * (attention + 2 * expert) * (0.5 + 2.0 / 128) + 2 * head);
  c.quantization.weights = Format::fp8;
  c.quantization.kv_cache = Format::fp8;
  EXPECT_DOUBLE_EQ(work_of_step(c, 1, 1, 500).bytes - work_of_step(c, 1, 1).bytes, 32 * 500 * kv);
}

}  // namespace
}  // namespace ostro::plan
