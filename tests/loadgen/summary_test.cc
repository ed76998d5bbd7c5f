#include "loadgen/summary.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace ostro::loadgen {
namespace {

Record record(double start, std::vector<double> arrived, std::int64_t input, std::int64_t output) {
  const double end = arrived.back();
  return {.start_s = start,
          .arrived_s = std::move(arrived),
          .end_s = end,
          .input_tokens = input,
          .output_tokens = output};
}

Record failure(double start, double end, const std::string& error) {
  Record r;
  r.start_s = start;
  r.end_s = end;
  r.error = error;
  return r;
}

// numpy.percentile([1, 2, 4, 8], [50, 90, 99]) and numpy.std.
TEST(Distribution, IsNumpys) {
  const Distribution d = Distribution::of({8, 1, 4, 2});
  EXPECT_EQ(d.count, 4u);
  EXPECT_DOUBLE_EQ(d.mean, 3.75);
  EXPECT_DOUBLE_EQ(d.p50, 3);
  EXPECT_DOUBLE_EQ(d.p90, 6.8);
  EXPECT_DOUBLE_EQ(d.p99, 7.88);
  EXPECT_DOUBLE_EQ(d.max, 8);
  EXPECT_NEAR(d.std, 2.6809513, 1e-7);
  EXPECT_EQ(Distribution::of({}).count, 0u);
  EXPECT_EQ(Distribution::of({5}).p99, 5);
}

// Three requests by hand: the first two overlap in [1, 3].
TEST(Summarise, AddsUpByHand) {
  const std::vector<Record> records = {
      record(0, {1, 2, 3}, 10, 3),      // ttft 1, tpot 1, e2el 3
      record(1, {1.5, 2.5, 4}, 20, 6),  // two tokens a piece; ttft 0.5, tpot 2.5/5, e2el 3
      record(4, {6}, 30, 1),            // ttft 2, no tpot, e2el 2
      failure(4, 5, "HTTP 429"), failure(4, 5, "HTTP 429")};
  const Goodput limits = parse_goodput({"ttft:1000", "tpot:600"});
  const Summary s = summarise(records, limits);
  EXPECT_EQ(s.completed, 3);
  EXPECT_EQ(s.failed, 2);
  EXPECT_EQ(s.errors.at("HTTP 429"), 2);
  EXPECT_EQ(s.input_tokens, 60);
  EXPECT_EQ(s.output_tokens, 10);
  EXPECT_DOUBLE_EQ(s.duration_s, 6);
  EXPECT_EQ(s.ttft_ms.count, 3u);
  EXPECT_DOUBLE_EQ(s.ttft_ms.p50, 1000);
  EXPECT_EQ(s.tpot_ms.count, 2u);
  EXPECT_DOUBLE_EQ(s.tpot_ms.mean, 750);
  EXPECT_EQ(s.itl_ms.count, 4u);
  EXPECT_DOUBLE_EQ(s.itl_ms.mean, 1125);
  EXPECT_DOUBLE_EQ(s.e2el_ms.max, 3000);
  // The second alone: the first has a tpot of 1000 ms, the third a ttft of 2000 ms.
  EXPECT_EQ(s.good, 1);
  EXPECT_EQ(s.most_at_once, 3);  // at 4 s, when the second has just ended
}

TEST(Summarise, TheSteadyRateCountsWhatCameAtThePeak) {
  // Two at once from 1 to 3, and again from 4 to 5: from the first moment of the peak to the last.
  const std::vector<Record> records = {record(0, {0.5, 2, 3}, 1, 3), record(1, {2, 4.5, 5}, 1, 6),
                                       record(4, {4.2, 6}, 1, 2)};
  const Summary s = summarise(records, {});
  EXPECT_EQ(s.most_at_once, 2);
  EXPECT_DOUBLE_EQ(s.steady_s, 4);  // 1 to 5
  EXPECT_DOUBLE_EQ(s.steady_output_tokens, 2 + 6 + 1);
}

TEST(Summarise, NothingCompleted) {
  const Summary s = summarise({failure(0, 0, "no")}, {});
  EXPECT_EQ(s.completed, 0);
  EXPECT_NE(to_text(s, {}).find("1 x no"), std::string::npos);
  EXPECT_EQ(to_json(s, {})["output_throughput"], 0);
}

TEST(Json, HasVllmsNames) {
  const Summary s = summarise({record(0, {1, 2}, 10, 2)}, parse_goodput({"e2el:1000"}));
  const auto json = to_json(s, parse_goodput({"e2el:1000"}));
  EXPECT_EQ(json["completed"], 1);
  EXPECT_DOUBLE_EQ(json["request_throughput"], 0.5);
  EXPECT_DOUBLE_EQ(json["output_throughput"], 1);
  EXPECT_DOUBLE_EQ(json["total_token_throughput"], 6);
  EXPECT_DOUBLE_EQ(json["median_ttft_ms"], 1000);
  EXPECT_DOUBLE_EQ(json["p99_itl_ms"], 1000);
  EXPECT_DOUBLE_EQ(json["mean_tpot_ms"], 1000);
  EXPECT_DOUBLE_EQ(json["std_e2el_ms"], 0);
  EXPECT_DOUBLE_EQ(json["request_goodput"], 0);
}

TEST(Goodput, RefusesWhatIsNoLimit) {
  for (const char* limit : {"ttft", "ttft:", "ttft:x", "itl:5", "ttft:-1", "tpot:5ms", ":5"})
    EXPECT_THROW(parse_goodput({limit}), InvalidArgument) << limit;
}

}  // namespace
}  // namespace ostro::loadgen
