// tokenizer.json from anywhere: it is read and encodes, or it throws one of this project's errors.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "text/bpe_json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = ostro::txt::parse_tokenizer_json(json);
    for (bool parse_special : {false, true}) {
      const auto ids = tokenizer->encode("<s> Hello  w\u00F6rld\n\u6570 123\xFF </s>",
                                         {.parse_special = parse_special});
      tokenizer->decode(ids, parse_special);
    }
  } catch (const ostro::InvalidArgument&) {
  } catch (const ostro::Unsupported&) {
  }
  return 0;
}
