// An engine's config.json and a rank file's header from anywhere: blocks inside their matrices, or
// an error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "checkpoint/engine_reader.h"
#include "model/engine_config.h"

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
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  reads_or_throws([&] { ostro::checkpoint::parse_engine_config(text, "fuzz"); });
  reads_or_throws([&] { ostro::model::parse_engine_config(text, "fuzz"); });
  reads_or_throws([&] {
    const auto header =
        ostro::checkpoint::parse_safetensors(std::as_bytes(std::span(text)), "fuzz");
    for (const auto& t : ostro::checkpoint::engine_tensors(header, "fuzz"))
      if (t.bytes() > size || t.row_range.end > t.rows || t.col_range.end > t.cols) std::abort();
  });
  return 0;
}
