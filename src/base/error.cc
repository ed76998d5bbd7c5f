#include "base/error.h"

#include <sstream>
#include <system_error>

namespace ostro {

std::string internal::join(std::span<const Part> parts) {
  std::ostringstream out;
  for (const Part& part : parts) part.write(out, part.value);
  return out.str();
}

std::string system_error_text(int error_number) {
  return text(std::generic_category().message(error_number), " (errno ", error_number, ')');
}

}  // namespace ostro
