#include "base/error.h"

#include <system_error>

namespace ostro {

std::string system_error_text(int error_number) {
  return text(std::generic_category().message(error_number), " (errno ", error_number, ')');
}

}  // namespace ostro
