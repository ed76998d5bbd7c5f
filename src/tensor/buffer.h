// Memory with one owner.
#pragma once

#include <cstddef>
#include <utility>

#include "tensor/view.h"

namespace ostro {

// Move-only. The memory belongs to whoever made it: a backend or allocate_host().
class Buffer {
 public:
  using Free = void (*)(void* data, std::size_t bytes);

  Buffer() = default;
  Buffer(void* data, std::size_t bytes, Device device, Free free)
      : data_(data), bytes_(bytes), device_(device), free_(free) {}
  ~Buffer() {
    if (data_) free_(data_, bytes_);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(device_, other.device_);
    std::swap(free_, other.free_);
    return *this;
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  // A contiguous [rows, cols] matrix at byte `offset`; it must fit.
  View view(DType dtype, std::int64_t rows, std::int64_t cols, std::size_t offset = 0) const {
    const View v = matrix(static_cast<char*>(data_) + offset, dtype, rows, cols, device_);
    OSTRO_CHECK(offset + v.bytes() <= bytes_, describe(v), " at byte ", offset, " of ", bytes_);
    return v;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_ = Device::cpu;
  Free free_ = nullptr;
};

// Host memory from the operating system, zero, page-aligned, untouched until it is used; 2 MiB and
// more ask for huge pages. Throws DeviceError with the size if there is none.
Buffer allocate_host(std::size_t bytes);

}  // namespace ostro
