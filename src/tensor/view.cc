#include "tensor/view.h"

namespace ostro {

std::string describe(const View& v) { return text(name(v.dtype), " [", v.rows, ',', v.cols, ']'); }

}  // namespace ostro
