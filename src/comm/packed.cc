#include "comm/packed.h"

#include <algorithm>
#include <cstring>

namespace ostro::comm {
namespace {

// Calls visit(bytes of the view, length) for each run without a gap in [begin, begin + bytes).
template <class Visit>
void each_run(const View& view, std::size_t begin, std::size_t bytes, Visit visit) {
  OSTRO_CHECK(begin + bytes <= view.bytes(), "bytes [", begin, ',', begin + bytes, ") of ",
              describe(view));
  auto* data = static_cast<std::byte*>(view.data);
  const std::size_t size = size_of(view.dtype);
  const std::size_t row_bytes =
      view.contiguous() ? view.bytes() : static_cast<std::size_t>(view.cols) * size;
  const std::size_t stride_bytes = static_cast<std::size_t>(view.row_stride) * size;
  while (bytes > 0) {
    const std::size_t row = begin / row_bytes;
    const std::size_t column = begin % row_bytes;
    const std::size_t run = std::min(bytes, row_bytes - column);
    visit(data + row * stride_bytes + column, run);
    begin += run;
    bytes -= run;
  }
}

}  // namespace

void pack(const View& from, std::size_t begin, std::size_t bytes, std::byte* to) {
  each_run(from, begin, bytes, [&](const std::byte* run, std::size_t length) {
    std::memcpy(to, run, length);
    to += length;
  });
}

void unpack(const std::byte* from, std::size_t begin, std::size_t bytes, const View& to) {
  each_run(to, begin, bytes, [&](std::byte* run, std::size_t length) {
    std::memcpy(run, from, length);
    from += length;
  });
}

void copy(const View& from, const View& to) {
  OSTRO_CHECK(same_shape(from, to) && from.dtype == to.dtype, describe(from), " to ", describe(to));
  if (from.data == to.data && (from.row_stride == to.row_stride || from.rows <= 1)) return;
  const std::size_t size = size_of(from.dtype);
  for (std::int64_t r = 0; r < from.rows; ++r)
    std::memcpy(
        static_cast<std::byte*>(to.data) + static_cast<std::size_t>(r * to.row_stride) * size,
        static_cast<const std::byte*>(from.data) +
            static_cast<std::size_t>(r * from.row_stride) * size,
        static_cast<std::size_t>(from.cols) * size);
}

}  // namespace ostro::comm
