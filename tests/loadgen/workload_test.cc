#include "loadgen/workload.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/temp_dir.h"

namespace ostro::loadgen {
namespace {

std::vector<std::int64_t> draws(const std::string& spec, int n = 20000) {
  Random random(7);
  const LengthDistribution lengths(spec, "--input_len");
  std::vector<std::int64_t> all;
  for (int i = 0; i < n; ++i) all.push_back(lengths.draw(random));
  return all;
}

double mean(const std::vector<std::int64_t>& values) {
  double sum = 0;
  for (std::int64_t v : values) sum += double(v);
  return sum / double(values.size());
}

TEST(LengthDistribution, DrawsWhatItSays) {
  EXPECT_EQ(draws("128", 2), (std::vector<std::int64_t>{128, 128}));
  EXPECT_EQ(draws("fixed:9", 1), (std::vector<std::int64_t>{9}));

  const auto uniform = draws("uniform:10,20");
  EXPECT_EQ(*std::min_element(uniform.begin(), uniform.end()), 10);
  EXPECT_EQ(*std::max_element(uniform.begin(), uniform.end()), 20);
  // Five standard errors: sqrt(110 / 12 / 20000) = 0.022 each.
  EXPECT_NEAR(mean(uniform), 15, 0.11);

  const auto normal = draws("normal:200,20");
  EXPECT_NEAR(mean(normal), 200, 5 * 20 / std::sqrt(20000.0));
  double squares = 0;
  for (std::int64_t v : normal) squares += std::pow(double(v) - 200, 2);
  EXPECT_NEAR(std::sqrt(squares / 20000), 20, 5 * 20 / std::sqrt(2 * 20000.0));

  auto lognormal = draws("lognormal:100,1");
  // exp(mu + sigma^2 / 2); its standard deviation is 216 for a median of 100 and sigma 1.
  EXPECT_NEAR(mean(lognormal), 100 * std::exp(0.5), 5 * 216 / std::sqrt(20000.0));
  std::nth_element(lognormal.begin(), lognormal.begin() + 10000, lognormal.end());
  EXPECT_NEAR(double(lognormal[10000]), 100, 5);

  for (std::int64_t v : draws("normal:10,50,4,12")) EXPECT_TRUE(4 <= v && v <= 12) << v;
  for (std::int64_t v : draws("normal:1,50")) EXPECT_GE(v, 1);
}

TEST(LengthDistribution, RefusesWhatIsNoDistribution) {
  for (const char* spec :
       {"",           "0",          "-1",           "1.5",          "x",
        "128x",       "1,2",        "uniform:5",    "uniform:9,5",  "uniform:0,5",
        "normal:5",   "normal:0,1", "normal:5,-1",  "normal:5,1,3", "normal:5,1,6,3",
        "zipf:1,2",   "fixed:",     "uniform:1,2,", "inf",          "nan",
        "99999999999"})
    EXPECT_THROW(LengthDistribution(spec, "--input_len"), InvalidArgument) << spec;
  try {
    LengthDistribution("zipf:1", "--output_len");
  } catch (const InvalidArgument& e) {
    EXPECT_NE(std::string(e.what()).find("--output_len is \"zipf:1\""), std::string::npos);
  }
}

TEST(Synthetic, PromptsAreRandomAndTheSeedGivesThemAgain) {
  const SyntheticOptions options{.requests = 50,
                                 .input = {"uniform:5,9", ""},
                                 .output = {"7", ""},
                                 .first_id = 3,
                                 .vocab = 20};
  Random one(1), again(1), other(2);
  const auto items = synthetic(options, one), same = synthetic(options, again),
             others = synthetic(options, other);
  ASSERT_EQ(items.size(), 50u);
  std::int32_t least = 1000, most = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(items[i].ids, same[i].ids);
    EXPECT_EQ(items[i].max_tokens, 7);
    EXPECT_TRUE(5 <= items[i].ids.size() && items[i].ids.size() <= 9);
    for (std::int32_t id : items[i].ids) least = std::min(least, id), most = std::max(most, id);
  }
  EXPECT_EQ(least, 3);
  EXPECT_EQ(most, 22);
  EXPECT_NE(items[0].ids, others[0].ids);
}

class DatasetTest : public testing::Test {
 protected:
  std::vector<Item> read(const std::string& content, std::int64_t requests = 0) {
    write_bytes(path_, content);
    Random random(1);
    return read_dataset(path_, requests, LengthDistribution("30", ""), random);
  }

  TempDir dir_;
  std::filesystem::path path_ = dir_ / "dataset.jsonl";
};

TEST_F(DatasetTest, ReadsTheThreeKindsAndGoesRound) {
  const std::string lines =
      "{\"prompt\": \"a b\", \"max_tokens\": 5}\n\n{\"input_ids\": [1, 2]}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"max_tokens\": 9}\n";
  const auto items = read(lines);
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0].prompt, "a b");
  EXPECT_EQ(items[0].max_tokens, 5);
  EXPECT_EQ(items[1].ids, (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(items[1].max_tokens, 30);
  EXPECT_EQ(items[2].messages[0]["content"], "x");
  const auto more = read(lines, 5);
  ASSERT_EQ(more.size(), 5u);
  EXPECT_EQ(more[4].ids, items[1].ids);
  EXPECT_EQ(read(lines, 1).size(), 1u);
}

TEST_F(DatasetTest, NamesTheLineThatIsWrong) {
  for (const char* line :
       {"{}", "{\"prompt\": \"\"}", "{\"prompt\": 3}", "{\"input_ids\": []}",
        "{\"input_ids\": [-1]}", "{\"messages\": []}", "{\"prompt\": \"a\", \"input_ids\": [1]}",
        "{\"prompt\": \"a\", \"max_tokens\": 0}", "[]", "{"}) {
    try {
      read(std::string("{\"prompt\": \"good\"}\n") + line + "\n");
      ADD_FAILURE() << line;
    } catch (const InvalidArgument& e) {
      EXPECT_NE(std::string(e.what()).find(path_.string() + " line 2"), std::string::npos)
          << e.what();
    }
  }
  EXPECT_THROW(read("\n"), InvalidArgument);
}

TEST(Arrivals, ArePoissonOrAllAtOnce) {
  Random random(3);
  EXPECT_EQ(arrivals(3, INFINITY, random), (std::vector<double>{0, 0, 0}));
  const auto times = arrivals(20001, 50, random);
  EXPECT_EQ(times[0], 0);
  double squares = 0;
  for (std::size_t i = 1; i < times.size(); ++i) {
    ASSERT_GE(times[i], times[i - 1]);
    squares += std::pow((times[i] - times[i - 1]) * 50 - 1, 2);
  }
  // Gaps have mean 1/50 and, as exponential ones do, the same standard deviation; five errors.
  EXPECT_NEAR(times.back() / 20000 * 50, 1, 5 / std::sqrt(20000.0));
  EXPECT_NEAR(squares / 20000, 1, 5 * std::sqrt(8 / 20000.0));
}

}  // namespace
}  // namespace ostro::loadgen
