// Which tactic is taken, given how to compare them.
#include <algorithm>

#include "base/error.h"
#include "builder/tune.h"

namespace ostro::builder {
namespace {

constexpr std::size_t kRounds = 9;
constexpr double kLeastGain = 0.02;

// Sorted measurements.
double median(const std::vector<double>& seconds) { return seconds[kRounds / 2]; }
// Between the quartiles, of the median.
double spread(const std::vector<double>& seconds) {
  return (seconds[kRounds - 1 - kRounds / 4] - seconds[kRounds / 4]) / median(seconds);
}

}  // namespace

Choice choose(std::span<const ops::Tactic> tactics, const Trials& trials) {
  OSTRO_CHECK(!tactics.empty(), "no tactic to choose from");
  Choice choice{.tactic = tactics.front(), .gain = 0, .wrong = {}};
  std::vector<ops::Tactic> tried;
  for (const ops::Tactic t : tactics) {
    const bool same = t == tactics.front() || trials.same(t);
    (same ? tried : choice.wrong).push_back(t);
  }
  if (tried.size() == 1) return choice;

  std::vector<std::vector<double>> seconds(tried.size());
  for (std::size_t round = 0; round < kRounds; ++round)
    for (std::size_t i = 0; i < tried.size(); ++i) seconds[i].push_back(trials.seconds(tried[i]));
  for (auto& s : seconds) std::ranges::sort(s);

  const std::vector<double>& planned = seconds.front();
  const auto best = std::size_t(std::ranges::min_element(seconds, {}, median) - seconds.begin());
  const double gain = 1 - median(seconds[best]) / median(planned);
  if (gain <= std::max({kLeastGain, spread(planned), spread(seconds[best])})) return choice;
  choice.tactic = tried[best];
  choice.gain = gain;
  return choice;
}

}  // namespace ostro::builder
