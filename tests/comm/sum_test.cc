#include "comm/sum.h"

#include <gtest/gtest.h>

#include <vector>

namespace ostro::comm {
namespace {

// 1e8 - 1e8 + 1 is 1 in rank order, and 0 if rank 2 is added before rank 1.
TEST(Sum, IsInRankOrderForEveryLength) {
  for (const std::int64_t n : {0, 1, 3, 16, 1023, 1024, 1025, 5000}) {
    const auto size = static_cast<std::size_t>(n);
    const std::vector<float> a(size, 1e8f), b(size, -1e8f), c(size, 1.0f);
    std::vector<float> sum(size + 1, 7.0f);
    sum_in_rank_order(std::vector<const float*>{a.data(), b.data(), c.data()}, sum.data(), n);
    for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(sum[i], 1.0f) << i << " of " << n;
    EXPECT_EQ(sum[size], 7.0f);
  }
}

TEST(Sum, MayReplaceAnyPart) {
  for (int replaced = 0; replaced < 3; ++replaced) {
    std::vector<std::vector<float>> x{std::vector<float>(2000, 1e8f),
                                      std::vector<float>(2000, -1e8f),
                                      std::vector<float>(2000, 1.0f)};
    sum_in_rank_order(std::vector<const float*>{x[0].data(), x[1].data(), x[2].data()},
                      x[replaced].data(), 2000);
    EXPECT_EQ(x[replaced], std::vector<float>(2000, 1.0f)) << replaced;
  }
}

}  // namespace
}  // namespace ostro::comm
