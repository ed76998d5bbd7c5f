#include "base/trace.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace ostro {
namespace {

using std::chrono::microseconds;

double to_us(Trace::Clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

}  // namespace

std::int64_t Trace::now_us() {
  return std::chrono::duration_cast<microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Trace::Trace(std::int64_t zero_us, std::size_t most)
    : to_zero_(microseconds(now_us() - zero_us) -
               std::chrono::duration_cast<microseconds>(Clock::now().time_since_epoch())),
      most_(most) {}

void Trace::add(const char* name, std::int64_t step, std::int64_t tokens, Clock::time_point begin,
                Clock::time_point end) {
  const Event event{name, step, tokens, begin, end};
  if (events_.size() < most_)
    events_.push_back(event);
  else
    events_[added_ % most_] = event;
  ++added_;
}

std::string Trace::events(int rank, const std::string& row_name) const {
  std::string out = nlohmann::json{{"name", "thread_name"},
                                   {"ph", "M"},
                                   {"pid", 0},
                                   {"tid", rank},
                                   {"args", {{"name", row_name}}}}
                        .dump();
  char line[256];
  for (const Event& e : events_) {
    std::snprintf(line, sizeof(line),
                  ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":0,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,"
                  "\"args\":{\"step\":%lld,\"tokens\":%lld}}",
                  e.name, rank, to_us(e.begin.time_since_epoch() + to_zero_),
                  to_us(e.end - e.begin), static_cast<long long>(e.step),
                  static_cast<long long>(e.tokens));
    out += line;
  }
  return out;
}

}  // namespace ostro
