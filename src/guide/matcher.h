// One output on its way through a grammar: which tokens may come next.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace ostro::guide {

class Grammar;

//   Matcher matcher(compiler.compile(guide));
//   while (matcher.any()) matcher.accept(choose(matcher.allowed()));
//
// Of one thread. Never throws for what a client wrote: where xgrammar fails, nothing is allowed.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const Grammar>);
  ~Matcher();
  Matcher(Matcher&&) noexcept;
  Matcher& operator=(Matcher&&) noexcept;

  // Bit t % 32 of word t / 32: token t may come next. End ids are not among them: whether the
  // output may end is complete(). [ceil(vocab / 32)], valid until accept().
  std::span<const std::uint32_t> allowed() const { return allowed_; }
  bool any() const { return any_; }  // some token may come next
  bool complete() const;             // the output so far is a whole one

  // `token` must be allowed.
  void accept(std::int32_t token);

 private:
  struct State;
  void fill();

  std::shared_ptr<const Grammar> grammar_;
  std::unique_ptr<State> state_;
  std::vector<std::uint32_t> allowed_;
  bool any_ = false;
  bool first_ = true;
};

}  // namespace ostro::guide
