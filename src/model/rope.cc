#include "model/rope.h"

#include <cmath>
#include <numbers>

namespace ostro::model {
namespace {

// Llama 3.1: wavelengths shorter than original / high_freq_factor stay, longer than
// original / low_freq_factor are divided by factor, and between them the two are mixed.
double stretch_llama3(double frequency, const RopeScaling& rope) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double original = double(rope.original_context);
  if (wavelength < original / rope.high_freq_factor) return frequency;
  if (wavelength > original / rope.low_freq_factor) return frequency / rope.factor;
  const double kept = (original / wavelength - rope.low_freq_factor) /
                      (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - kept) * frequency / rope.factor + kept * frequency;
}

double base_for(const ModelConfig& config, std::int64_t sequence_tokens) {
  const RopeScaling& rope = config.rope_scaling;
  if (rope.type != RopeScaling::Type::dynamic || sequence_tokens <= rope.original_context)
    return config.rope_theta;
  const double d = double(config.head_dim);
  const double stretch =
      rope.factor * double(sequence_tokens) / double(rope.original_context) - (rope.factor - 1);
  return config.rope_theta * std::pow(stretch, d / (d - 2));
}

}  // namespace

std::vector<float> inverse_frequencies(const ModelConfig& config, std::int64_t sequence_tokens) {
  const double base = base_for(config, sequence_tokens);
  const RopeScaling& rope = config.rope_scaling;
  std::vector<float> frequencies(std::size_t(config.head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    double f = std::pow(base, -2.0 * double(i) / double(config.head_dim));
    if (rope.type == RopeScaling::Type::linear) f /= rope.factor;
    if (rope.type == RopeScaling::Type::llama3) f = stretch_llama3(f, rope);
    frequencies[i] = float(f);
  }
  return frequencies;
}

}  // namespace ostro::model
