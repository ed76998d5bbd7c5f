#include "loadgen/summary.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace ostro::loadgen {
namespace {

bool within(const Record& r, const Goodput& limits) {
  for (const auto& [name, most_ms] : limits) {
    const double seconds = name == "ttft"   ? r.ttft_s()
                           : name == "tpot" ? r.tpot_s().value_or(0)
                                            : r.e2el_s();
    if (seconds * 1000 > most_ms) return false;
  }
  return true;
}

// The most requests that are open at once, and the first and the last moment of that.
void find_peak(const std::vector<Record>& records, Summary& s, double& first, double& last) {
  std::vector<std::pair<double, int>> changes;
  for (const Record& r : records) {
    changes.emplace_back(r.start_s, 1);
    changes.emplace_back(r.end_s, -1);
  }
  std::sort(changes.begin(), changes.end());  // ends before beginnings of the same moment
  std::int64_t open = 0;
  for (const auto& [time, change] : changes) {
    if (change < 0 && open == s.most_at_once) last = time;
    open += change;
    if (open > s.most_at_once) {
      s.most_at_once = open;
      first = time;
    }
  }
}

}  // namespace

std::optional<double> Record::tpot_s() const {
  if (output_tokens < 2) return {};
  return (e2el_s() - ttft_s()) / double(output_tokens - 1);
}

Distribution Distribution::of(std::vector<double> values) {
  Distribution d;
  d.count = values.size();
  if (values.empty()) return d;
  std::sort(values.begin(), values.end());
  const auto n = double(values.size());
  d.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (double v : values) squares += (v - d.mean) * (v - d.mean);
  d.std = std::sqrt(squares / n);
  const auto percentile = [&](double p) {
    const double place = p * (n - 1);
    const auto below = std::size_t(place);
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - double(below)) * (values[above] - values[below]);
  };
  d.p50 = percentile(0.5);
  d.p90 = percentile(0.9);
  d.p99 = percentile(0.99);
  d.max = values.back();
  return d;
}

Goodput parse_goodput(const std::vector<std::string>& limits) {
  Goodput goodput;
  for (const std::string& limit : limits) {
    const std::size_t colon = limit.find(':');
    const std::string name = limit.substr(0, colon);
    double most_ms = -1;
    if (colon != limit.npos) {
      const char* end = limit.data() + limit.size();
      const auto [stop, error] = std::from_chars(limit.data() + colon + 1, end, most_ms);
      if (error != std::errc() || stop != end) most_ms = -1;
    }
    OSTRO_REQUIRE((name == "ttft" || name == "tpot" || name == "e2el") && most_ms >= 0,
                  "--goodput has \"", limit,
                  "\"; it takes ttft:MS, tpot:MS and e2el:MS with milliseconds");
    goodput[name] = most_ms;
  }
  return goodput;
}

Summary summarise(const std::vector<Record>& records, const Goodput& limits) {
  Summary s;
  std::vector<double> ttft, tpot, itl, e2el;
  for (const Record& r : records) {
    s.duration_s = std::max(s.duration_s, r.end_s);
    if (!r.completed()) {
      ++s.failed;
      ++s.errors[r.error];
      continue;
    }
    OSTRO_CHECK(!r.arrived_s.empty(), "a request is complete without an answer");
    ++s.completed;
    s.counted_pieces |= r.counted_pieces;
    if (!limits.empty() && within(r, limits)) ++s.good;
    s.input_tokens += r.input_tokens;
    s.output_tokens += r.output_tokens;
    ttft.push_back(r.ttft_s() * 1000);
    e2el.push_back(r.e2el_s() * 1000);
    if (const auto seconds = r.tpot_s()) tpot.push_back(*seconds * 1000);
    for (std::size_t i = 1; i < r.arrived_s.size(); ++i)
      itl.push_back((r.arrived_s[i] - r.arrived_s[i - 1]) * 1000);
  }
  s.ttft_ms = Distribution::of(std::move(ttft));
  s.tpot_ms = Distribution::of(std::move(tpot));
  s.itl_ms = Distribution::of(std::move(itl));
  s.e2el_ms = Distribution::of(std::move(e2el));

  double first = 0, last = 0;
  find_peak(records, s, first, last);
  if (last <= first) return s;
  s.steady_s = last - first;
  for (const Record& r : records) {
    const auto inside = std::count_if(r.arrived_s.begin(), r.arrived_s.end(),
                                      [&](double t) { return first < t && t <= last; });
    if (inside > 0)
      s.steady_output_tokens +=
          double(inside) * double(r.output_tokens) / double(r.arrived_s.size());
  }
  return s;
}

}  // namespace ostro::loadgen
