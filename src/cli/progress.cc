#include "cli/progress.h"

#include <unistd.h>

#include <cstdio>

namespace ostro::cli {

std::string size_text(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  for (; bytes >= 1000 && unit < 4; ++unit) bytes /= 1000;
  char out[32];
  std::snprintf(out, sizeof(out), unit == 0 ? "%.0f %s" : "%.2f %s", bytes, units[unit]);
  return out;
}

ProgressBar::ProgressBar(std::string label, bool quiet)
    : label_(std::move(label)), quiet_(quiet), terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressBar::show(double done, const std::function<std::string()>& state) {
  constexpr double kBarSeconds = 0.1, kLineSeconds = 5;
  const double now = watch_.seconds();
  if (quiet_ || now < next_seconds_) return;
  const bool first = next_seconds_ == 0;
  next_seconds_ = now + (terminal_ ? kBarSeconds : kLineSeconds);
  if (first && !terminal_) return;  // short work needs no line
  if (!terminal_) {
    std::fprintf(stderr, "[ostro] %s: %3.0f %%, %s\n", label_.c_str(), done * 100, state().c_str());
    return;
  }
  constexpr int kWidth = 24;
  const int filled = int(done * kWidth);
  std::fprintf(stderr, "\r\033[K[%.*s%*s] %3.0f %%  %s", filled, "########################",
               kWidth - filled, "", done * 100, state().c_str());
  shown_ = true;
}

void ProgressBar::clear() {
  if (shown_) std::fprintf(stderr, "\r\033[K");
  shown_ = false;
}

void BuildProgressBar::show(const builder::BuildProgress& p) {
  if (p.bytes == 0) return;
  bar_.show(double(p.bytes_done) / double(p.bytes), [&] {
    const double rate = double(p.bytes_done) / std::max(bar_.seconds(), 1e-3);
    const double left = rate > 0 ? double(p.bytes - p.bytes_done) / rate : 0;
    return text(p.tensors_done, '/', p.tensors, " tensors, ", size_text(double(p.bytes_done)),
                " of ", size_text(double(p.bytes)), ", ", size_text(rate), "/s, ", int(left + 0.5),
                " s left");
  });
}

}  // namespace ostro::cli
