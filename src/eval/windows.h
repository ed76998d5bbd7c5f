// How a text that may be longer than the context is scored.
#pragma once

#include <cstdint>
#include <vector>

namespace ostro::eval {

// Tokens [begin, end) of a document are read together; of them [scored, end) are scored, each by
// what stands before it in the window.
struct Window {
  std::int64_t begin = 0, end = 0, scored = 0;

  bool operator==(const Window&) const = default;
};

// As Hugging Face's guide "Perplexity of fixed-length models" cuts: windows of at most `length`
// tokens, `stride` apart, until one reaches the end; each scores what no window before it has. The
// first token of a window has nothing before it: it is scored by another window or not at all.
// stride 0: one window, and what is behind it is cut off.
std::vector<Window> windows_of(std::int64_t tokens, std::int64_t length, std::int64_t stride);

}  // namespace ostro::eval
