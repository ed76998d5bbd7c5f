#include "model/step.h"

#include <cstring>

#include "base/error.h"

namespace ostro::model {
namespace {

// Calls fn on each array of the step, in the order in which they travel.
template <class S, class F>
void for_each_array(S& step, F&& fn) {
  fn(step.ids);
  fn(step.query_start);
  fn(step.context_len);
  fn(step.block_table);
  fn(step.rope_tokens);
  fn(step.logit_rows);
  fn(step.host_rows);
  fn(step.samples);
  fn(step.block_copies);
}

}  // namespace

void Step::add_sample(const ops::SampleSettings& settings) {
  samples.resize(samples.size() + std::size_t(ops::kSettingWords));
  std::memcpy(samples.data() + samples.size() - ops::kSettingWords, &settings, sizeof(settings));
}

ops::SampleSettings Step::sample(std::int64_t row) const {
  ops::SampleSettings settings;
  std::memcpy(static_cast<void*>(&settings), samples.data() + row * ops::kSettingWords,
              sizeof(settings));
  return settings;
}

std::int64_t Step::most_alternatives() const {
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < sample_rows(); ++i)
    most = std::max<std::int64_t>(most, sample(i).alternatives);
  return most;
}

std::vector<std::int32_t> pack(const Step& step) {
  std::vector<std::int32_t> flat = {step.blocks_each};
  for_each_array(step, [&](const auto& array) {
    flat.push_back(std::int32_t(array.size()));
    flat.insert(flat.end(), array.begin(), array.end());
  });
  return flat;
}

Step unpack(std::span<const std::int32_t> flat) {
  Step step;
  std::size_t at = 0;
  const auto next = [&] {
    OSTRO_CHECK(at < flat.size(), "a step plan ends after ", flat.size(), " words");
    return flat[at++];
  };
  step.blocks_each = next();
  for_each_array(step, [&](auto& array) {
    const auto n = std::size_t(next());
    OSTRO_CHECK(n <= flat.size() - at, "a step plan of ", flat.size(), " words has ", n,
                " more at ", at);
    array.assign(flat.begin() + std::ptrdiff_t(at), flat.begin() + std::ptrdiff_t(at + n));
    at += n;
  });
  return step;
}

}  // namespace ostro::model
