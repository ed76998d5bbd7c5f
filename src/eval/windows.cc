#include "eval/windows.h"

#include <algorithm>

namespace ostro::eval {

std::vector<Window> windows_of(std::int64_t tokens, std::int64_t length, std::int64_t stride) {
  std::vector<Window> all;
  std::int64_t done = 0;  // tokens that a window has read
  for (std::int64_t begin = 0; done < tokens; begin += stride) {
    const std::int64_t end = std::min(begin + length, tokens);
    all.push_back({.begin = begin, .end = end, .scored = std::max(done, begin + 1)});
    done = end;
    if (stride == 0) break;
  }
  return all;
}

}  // namespace ostro::eval
