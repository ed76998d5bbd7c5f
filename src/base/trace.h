// When each rank did what, as Chrome's trace events: chrome://tracing and ui.perfetto.dev show
// them.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace ostro {

// The spans of one rank, the last `most` of them. Not thread-safe.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  // Microseconds since 1970. The ranks of a program agree on one such time as their zero.
  static std::int64_t now_us();
  explicit Trace(std::int64_t zero_us, std::size_t most = 1'000'000);

  // `name` must outlive the trace. `step` counts the steps from 0.
  void add(const char* name, std::int64_t step, std::int64_t tokens, Clock::time_point begin,
           Clock::time_point end);

  // JSON objects with commas between them: the name of the row `rank`, then its spans with `ts` and
  // `dur` in microseconds and `args` {step, tokens}.
  std::string events(int rank, const std::string& row_name) const;

 private:
  struct Event {
    const char* name;
    std::int64_t step, tokens;
    Clock::time_point begin, end;
  };

  std::chrono::microseconds to_zero_;  // what a steady time since its epoch is moved by
  std::size_t most_;
  std::vector<Event> events_;
  std::size_t added_ = 0;
};

// Adds the time of a scope to a trace, if there is one.
//
//   const Span span(trace, "compute", number, step.tokens());
class Span {
 public:
  Span(Trace* trace, const char* name, std::int64_t step, std::int64_t tokens)
      : trace_(trace), name_(name), step_(step), tokens_(tokens) {
    if (trace_) begin_ = Trace::Clock::now();
  }
  ~Span() {
    if (trace_) trace_->add(name_, step_, tokens_, begin_, Trace::Clock::now());
  }
  Span(const Span&) = delete;

 private:
  Trace* trace_;
  const char* name_;
  std::int64_t step_, tokens_;
  Trace::Clock::time_point begin_;
};

}  // namespace ostro
