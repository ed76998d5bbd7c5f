// Numbers distinct strings 0, 1, 2 ... in the order of their insertion, and finds them again.
//
//   StringIndex index;
//   index.insert("a");       // {0, true}
//   index.find("a");         // 0
//   index[0];                // "a"
//
// All strings lie in one array: a vocabulary of 128 000 is two allocations, not 128 000. At most
// 4 GiB of strings in all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ostro::txt {

class StringIndex {
 public:
  static constexpr std::uint32_t kAbsent = ~0u;

  void reserve(std::size_t strings, std::size_t bytes);
  // The string's number, and whether it is new.
  std::pair<std::uint32_t, bool> insert(std::string_view string);
  // Its number, or kAbsent.
  std::uint32_t find(std::string_view string) const;
  // Valid until the next insert().
  std::string_view operator[](std::uint32_t number) const {
    const std::uint32_t begin = number == 0 ? 0 : ends_[number - 1];
    return std::string_view(bytes_).substr(begin, ends_[number] - begin);
  }
  std::size_t size() const { return ends_.size(); }

 private:
  // Open addressing with linear probing, at most half full. Equal hashes spare most comparisons.
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t number = kAbsent;
  };
  std::size_t slot_of(std::string_view string, std::uint32_t hash) const;
  void grow(std::size_t slots);

  std::string bytes_;
  std::vector<std::uint32_t> ends_;
  std::vector<Slot> slots_;
};

}  // namespace ostro::txt
