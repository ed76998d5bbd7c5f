// A safetensors file from anywhere: its tensors lie inside it, or it is one of this project's
// errors.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto header = ostro::checkpoint::parse_safetensors(
        {reinterpret_cast<const std::byte*>(data), size}, "fuzz");
    for (const auto& tensor : header.tensors)
      if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
  } catch (const ostro::InvalidArgument&) {
  }
  return 0;
}
