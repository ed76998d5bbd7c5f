// The end of the program.
#pragma once

namespace ostro::cli {

// For main() to return: `code`, if it returns. While a guide is compiled that nobody waits for any
// more, the process ends here instead, without destroying the statics that its thread uses.
int leave(int code);

}  // namespace ostro::cli
