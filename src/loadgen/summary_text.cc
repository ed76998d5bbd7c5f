#include <cstdio>

#include "base/error.h"
#include "loadgen/summary.h"

namespace ostro::loadgen {
namespace {

struct Named {
  const char* name;
  const Distribution* values;
};

std::vector<Named> distributions(const Summary& s) {
  return {{"ttft", &s.ttft_ms}, {"tpot", &s.tpot_ms}, {"itl", &s.itl_ms}, {"e2el", &s.e2el_ms}};
}

double rate(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char line[256];
  std::snprintf(line, sizeof(line), pattern, args...);
  return line;
}

}  // namespace

std::string to_text(const Summary& s, const Goodput& goodput) {
  std::string out = format(
      "requests  %lld completed, %lld failed in %.2f s: %.2f requests/s, at most %lld at once\n",
      static_cast<long long>(s.completed), static_cast<long long>(s.failed), s.duration_s,
      rate(double(s.completed), s.duration_s), static_cast<long long>(s.most_at_once));
  out += format("tokens    %lld in, %lld out%s: %.1f output tokens/s, %.1f total tokens/s\n",
                static_cast<long long>(s.input_tokens), static_cast<long long>(s.output_tokens),
                s.counted_pieces ? " (events counted: the server tells no usage)" : "",
                rate(double(s.output_tokens), s.duration_s),
                rate(double(s.input_tokens + s.output_tokens), s.duration_s));
  out += format("%-8s %10s %10s %10s %10s %10s\n", "ms", "mean", "P50", "P90", "P99", "max");
  for (const auto& [name, d] : distributions(s))
    if (d->count > 0)
      out += format("%-8s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, d->mean, d->p50, d->p90,
                    d->p99, d->max);
  if (!goodput.empty()) {
    out +=
        format("goodput   %.2f requests/s: %lld of %lld within", rate(double(s.good), s.duration_s),
               static_cast<long long>(s.good), static_cast<long long>(s.completed + s.failed));
    for (const auto& [name, ms] : goodput) out += format(" %s %g ms", name.c_str(), ms);
    out += '\n';
  }
  for (const auto& [error, times] : s.errors) out += text("failed    ", times, " x ", error, '\n');
  return out;
}

nlohmann::ordered_json to_json(const Summary& s, const Goodput& goodput) {
  nlohmann::ordered_json out = {
      {"duration", s.duration_s},
      {"completed", s.completed},
      {"failed", s.failed},
      {"total_input_tokens", s.input_tokens},
      {"total_output_tokens", s.output_tokens},
      {"request_throughput", rate(double(s.completed), s.duration_s)},
      {"output_throughput", rate(double(s.output_tokens), s.duration_s)},
      {"total_token_throughput", rate(double(s.input_tokens + s.output_tokens), s.duration_s)},
      {"max_concurrent_requests", s.most_at_once}};
  if (!goodput.empty()) {
    out["goodput_limits_ms"] = goodput;
    out["good_completed"] = s.good;
    out["request_goodput"] = rate(double(s.good), s.duration_s);
  }
  for (const auto& [name, d] : distributions(s)) {
    const std::string unit = text('_', name, "_ms");
    out["mean" + unit] = d->mean;
    out["median" + unit] = d->p50;
    out["std" + unit] = d->std;
    out["p50" + unit] = d->p50;
    out["p90" + unit] = d->p90;
    out["p99" + unit] = d->p99;
    out["max" + unit] = d->max;
  }
  out["errors"] = s.errors;
  return out;
}

}  // namespace ostro::loadgen
