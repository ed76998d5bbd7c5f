// What is refused before it can take a grammar's compiler long, or its stack.
#pragma once

#include "guide/guide.h"

namespace ostro::guide {

inline constexpr std::size_t kLongestTextBytes = 64 << 10;
inline constexpr std::size_t kDeepest = 64;  // brackets in each other; parse_json's limit too
inline constexpr std::int64_t kMostSymbols = 8192;

// Of a thread's time, for what one token makes possible next: microseconds in common guides. One
// with very many ways to read a text would hold up all that run beside it.
inline constexpr double kLongestTokenSeconds = 0.2;
double thread_seconds();

// Throws InvalidArgument naming what is beyond a limit. A regular expression or a grammar has at
// most kMostSymbols characters when its bounded repetitions are written out: (ab{1,9}){2} has 20.
// In a JSON schema the patterns and the bounds of lengths (maxLength, minItems ...) add up to at
// most that.
void check_limits(const Guide&);

}  // namespace ostro::guide
