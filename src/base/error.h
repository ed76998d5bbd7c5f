// The four errors this project throws, and the macros that throw them.
//
//   InvalidArgument  the caller's input is wrong; nothing has changed      -> HTTP 400, exit 2
//   Unsupported      the input is valid, this build or device cannot do it -> HTTP 501, exit 3
//   DeviceError      the disk, MPI, CUDA or NCCL failed                    -> the rank stops, exit
//   4 InternalError    an invariant is broken: a bug in this repository      -> the rank stops,
//   exit 5
//
// Outcomes that are normal in service (queue full, no KV block left, client gone) are never thrown:
// they are return values. A message is one sentence with the values in it; what() is that sentence,
// where() the line that threw.
#pragma once

#include <ostream>
#include <source_location>
#include <span>
#include <stdexcept>
#include <string>

namespace ostro {

class Error : public std::runtime_error {
 public:
  Error(const std::string& message, std::source_location where)
      : std::runtime_error(message), where_(where) {}
  const std::source_location& where() const { return where_; }

 private:
  std::source_location where_;
};

struct InvalidArgument : Error {
  using Error::Error;
};
struct Unsupported : Error {
  using Error::Error;
};
struct DeviceError : Error {
  using Error::Error;
};
struct InternalError : Error {
  using Error::Error;
};

namespace internal {
// A value and how to write it.
struct Part {
  const void* value;
  void (*write)(std::ostream&, const void* value);
};
template <class T>
Part part(const T& value) {
  return {&value, [](std::ostream& out, const void* v) { out << *static_cast<const T*>(v); }};
}
template <std::size_t N>
Part part(const char (&value)[N]) {  // one function for literals of all lengths
  return {value, [](std::ostream& out, const void* v) { out << static_cast<const char*>(v); }};
}
std::string join(std::span<const Part> parts);
}  // namespace internal

// Joins its arguments with operator<<; used only on the failing path.
template <class... Args>
std::string text(const Args&... args) {
  const internal::Part parts[] = {internal::part(args)...};
  return internal::join(parts);
}

// The message of the failed system call: "No space left on device (errno 28)".
std::string system_error_text(int error_number);

}  // namespace ostro

#define OSTRO_THROW(E, ...) throw E(::ostro::text(__VA_ARGS__), std::source_location::current())

// OSTRO_REQUIRE(cond, values...): InvalidArgument unless cond. The message gives the values.
#define OSTRO_REQUIRE(cond, ...)                          \
  do {                                                    \
    if (!(cond)) [[unlikely]]                             \
      OSTRO_THROW(::ostro::InvalidArgument, __VA_ARGS__); \
  } while (false)

// OSTRO_SUPPORTED(cond, values...): Unsupported unless cond. The message names what exists.
#define OSTRO_SUPPORTED(cond, ...)                    \
  do {                                                \
    if (!(cond)) [[unlikely]]                         \
      OSTRO_THROW(::ostro::Unsupported, __VA_ARGS__); \
  } while (false)

// OSTRO_CHECK(cond, values...): InternalError, with the condition, unless cond.
#define OSTRO_CHECK(cond, ...)                                       \
  do {                                                               \
    if (!(cond)) [[unlikely]]                                        \
      OSTRO_THROW(::ostro::InternalError, #cond, ": ", __VA_ARGS__); \
  } while (false)
