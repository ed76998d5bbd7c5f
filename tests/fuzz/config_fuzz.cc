// A config.json or params.json from anywhere: a model that passes its own checks, or an error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "model/config.h"

namespace {

template <class F>
void reads_or_throws(F read) {
  try {
    ostro::model::check(read());
  } catch (const ostro::InvalidArgument&) {
  } catch (const ostro::Unsupported&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  reads_or_throws([&] { return ostro::model::from_hugging_face(text, "fuzz"); });
  reads_or_throws(
      [&] { return ostro::model::from_params(text, "fuzz", 64, 24, ostro::DType::bf16); });
  return 0;
}
