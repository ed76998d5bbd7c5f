// What xgrammar would print.
#pragma once

#include <string>

namespace ostro::guide {

// While it lives, holds the first warning of this thread: something that xgrammar would ignore.
class Warnings {
 public:
  Warnings();
  ~Warnings();
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;

  const std::string& first() const { return first_; }
  void add(const std::string& message);

 private:
  std::string first_;
};

}  // namespace ostro::guide
