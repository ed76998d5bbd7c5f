#include "quant/int8.h"

#include <algorithm>
#include <cmath>

#include "quant/e4m3.h"

namespace ostro::quant {
namespace {

constexpr float kMost = 127;

}  // namespace

float int8_scale(const float* x, std::int64_t n) { return e4m3_amax(x, n) / kMost; }

void int8_encode(const float* x, std::int64_t n, float scale, std::int8_t* q) {
  const float factor = 1 / scale;
  for (std::int64_t i = 0; i < n; ++i)
    q[i] = std::int8_t(std::clamp(std::nearbyint(x[i] * factor), -kMost, kMost));
}

}  // namespace ostro::quant
