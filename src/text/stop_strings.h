// Ends a streamed text at the first of several stop strings, wherever the stream is cut.
//
//   StopStrings stops({"\n\n", "User:"});
//   auto [text, stop] = stops.push(detokenizer.push(id));  // text is safe to show
//   if (stop) ...                                          // that string came next; it is not
//   shown
//
// The first is the one that is complete first; of two that end together, the longer. The text
// before it is released, nothing of it or after it ever is. What may still become a stop string is
// held back until it cannot, so the result does not depend on how the text was cut. One thread.
// Source: Aho and Corasick, Efficient string matching (1975): a step per byte, however many stops.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ostro::txt {

class StopStrings {
 public:
  // Throws InvalidArgument for a string that is empty or not UTF-8.
  explicit StopStrings(std::vector<std::string> stops);

  struct Step {
    std::string text;
    std::optional<std::size_t> stop;  // which of the strings was found
  };
  // After a stop was found, all text is ignored and `stop` stays.
  Step push(std::string_view text);

  // What was held back: no text follows. Empty after a stop.
  std::string finish();

  const std::string& operator[](std::size_t stop) const { return stops_[stop]; }
  std::size_t size() const { return stops_.size(); }

 private:
  // A node is a prefix of a stop string; the current one is the longest that the text ends with.
  struct Node {
    std::vector<std::pair<char, std::int32_t>> next;
    std::int32_t longest_suffix = 0;  // the longest other node that this one ends with
    std::int32_t depth = 0;
    std::int32_t stop = -1;  // the longest stop string that this node ends with
  };
  std::int32_t child(std::int32_t node, char c) const;  // -1 if there is none
  std::int32_t step(std::int32_t node, char c) const;
  void add(std::size_t stop);
  void link();

  std::vector<std::string> stops_;
  std::vector<Node> nodes_;
  std::int32_t node_ = 0;
  std::string held_;
  std::optional<std::size_t> found_;
};

}  // namespace ostro::txt
