// The packed form of a view: its elements row after row without gaps, a stream of bytes() bytes
// that is sent in pieces of any size.
#pragma once

#include <cstddef>

#include "tensor/view.h"

namespace ostro::comm {

// Bytes [begin, begin + bytes) of the packed form of `from`, to `to`.
void pack(const View& from, std::size_t begin, std::size_t bytes, std::byte* to);

// The reverse: `from` holds bytes [begin, begin + bytes) of the packed form of `to`.
void unpack(const std::byte* from, std::size_t begin, std::size_t bytes, const View& to);

// All elements of `from` to `to`, of the same shape and dtype. They may be the same memory.
void copy(const View& from, const View& to);

}  // namespace ostro::comm
