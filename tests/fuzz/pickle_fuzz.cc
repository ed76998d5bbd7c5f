// A torch.save file from anywhere, and a bare pickle: tensors inside the file, or an error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"
#include "checkpoint/torch_file.h"

namespace {

template <class F>
void reads_or_throws(F read) {
  try {
    read();
  } catch (const ostro::InvalidArgument&) {
  } catch (const ostro::Unsupported&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  reads_or_throws([&] {
    for (const auto& tensor : ostro::checkpoint::parse_torch_file(bytes, "fuzz"))
      if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
  });
  reads_or_throws([&] { ostro::checkpoint::read_state_dict(bytes, "fuzz"); });
  return 0;
}
