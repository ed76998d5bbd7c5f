// What a checkpoint file says about one tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace ostro::checkpoint {

// Element types that checkpoint files hold. Ostro computes with some of them: see to_dtype().
enum class StoredType : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  f8_e4m3,
  f8_e5m2,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean
};

std::string_view name(StoredType);  // as safetensors spells it: "BF16"
std::size_t size_of(StoredType);    // bytes an element
std::optional<StoredType> parse_stored_type(std::string_view safetensors_name);
std::optional<DType> to_dtype(StoredType);
StoredType stored_type(DType);

struct TensorInfo {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;  // row-major and contiguous
  std::uint64_t offset = 0;         // of the first byte in its file
  std::uint64_t bytes = 0;
};

// "[8,4096]", for messages.
std::string shape_text(const std::vector<std::int64_t>& shape);

// The product of `shape`, or nothing if a dimension is negative or it does not fit in 63 bits.
std::optional<std::int64_t> element_count(const std::vector<std::int64_t>& shape);

}  // namespace ostro::checkpoint
