// What Prometheus reads at /metrics. docs/serving.md lists the names.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ostro/executor.h"

namespace ostro::server {

// Counts of values up to each bound.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);
  void observe(double value);
  // Appends the lines of a histogram with this name.
  void write(const char* name, const char* help, std::string& out) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::int64_t> counts_;  // [bounds + 1]: in (bounds[i - 1], bounds[i]]
  double sum_ = 0;
};

// Of the server's thread.
class Metrics {
 public:
  Metrics();

  void count_exchange(const std::string& route, int status, bool complete);
  void observe_step(const IterationStatistics&);
  void observe_gap(double seconds) { gap_.observe(seconds); }
  void observe_request(const RequestStatistics&, std::int64_t sequences);

  std::string text(const ExecutorStatistics&, std::size_t connections, bool draining) const;

 private:
  std::map<std::pair<std::string, int>, std::int64_t> exchanges_;
  std::int64_t disconnects_ = 0;
  Histogram queue_, first_token_, per_token_, gap_, whole_, step_;
};

}  // namespace ostro::server
