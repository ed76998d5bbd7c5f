#include "base/trace.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <thread>

namespace ostro {
namespace {

using nlohmann::json;

json events_of(const Trace& trace) { return json::parse('[' + trace.events(3, "a row") + ']'); }

TEST(Trace, TellsWhatWasDoneWhen) {
  const std::int64_t zero = Trace::now_us();
  Trace trace(zero - 1'000'000);
  {
    const Span outer(&trace, "outer", 7, 12);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const Span inner(&trace, "inner", 8, 1);
  }
  const json events = events_of(trace);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0], json::parse(R"({"name": "thread_name", "ph": "M", "pid": 0, "tid": 3,
                            "args": {"name": "a row"}})"));
  const json &inner = events[1], &outer = events[2];
  EXPECT_EQ(inner["name"], "inner");
  EXPECT_EQ(outer["name"], "outer");
  EXPECT_EQ(outer["ph"], "X");
  EXPECT_EQ(outer["tid"], 3);
  EXPECT_EQ(outer["args"], (json{{"step", 7}, {"tokens", 12}}));
  EXPECT_GE(outer["dur"], 20e3);
  // A second after the zero that was given, by another clock.
  const double later = double(Trace::now_us() - zero);
  EXPECT_GT(outer["ts"], 1e6 - 5e3);
  EXPECT_LT(outer["ts"], 1e6 + later + 5e3);
  EXPECT_GE(double(inner["ts"]), double(outer["ts"]) + 20e3);
  EXPECT_LE(double(inner["ts"]) + double(inner["dur"]),
            double(outer["ts"]) + double(outer["dur"]) + 0.01);
}

TEST(Trace, KeepsTheLast) {
  Trace trace(0, 3);
  const auto now = Trace::Clock::now();
  for (std::int64_t i = 0; i < 5; ++i) trace.add("x", i, 0, now, now);
  std::set<int> steps;
  for (const json& event : events_of(trace))
    if (event["ph"] == "X") steps.insert(int(event["args"]["step"]));
  EXPECT_EQ(steps, (std::set<int>{2, 3, 4}));
}

TEST(Span, WithoutATraceDoesNothing) { const Span span(nullptr, "x", 0, 0); }

}  // namespace
}  // namespace ostro
