#include "checkpoint/tensor_info.h"

#include <array>

#include "base/error.h"

namespace ostro::checkpoint {
namespace {

struct TypeRow {
  std::string_view name;
  std::size_t bytes;
  std::optional<DType> dtype;
};

// In the order of StoredType.
constexpr std::array<TypeRow, 15> kTypes = {{
    {"F64", 8, {}},
    {"F32", 4, DType::f32},
    {"F16", 2, DType::f16},
    {"BF16", 2, DType::bf16},
    {"F8_E4M3", 1, DType::f8e4m3},
    {"F8_E5M2", 1, {}},
    {"I64", 8, {}},
    {"I32", 4, DType::i32},
    {"I16", 2, {}},
    {"I8", 1, DType::i8},
    {"U64", 8, {}},
    {"U32", 4, {}},
    {"U16", 2, {}},
    {"U8", 1, DType::u8},
    {"BOOL", 1, {}},
}};
static_assert(kTypes.size() == std::size_t(StoredType::boolean) + 1);

const TypeRow& row(StoredType type) { return kTypes[std::size_t(type)]; }

}  // namespace

std::string_view name(StoredType type) { return row(type).name; }
std::size_t size_of(StoredType type) { return row(type).bytes; }
std::optional<DType> to_dtype(StoredType type) { return row(type).dtype; }

std::optional<StoredType> parse_stored_type(std::string_view safetensors_name) {
  for (std::size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].name == safetensors_name) return StoredType(i);
  return {};
}

StoredType stored_type(DType dtype) {
  for (std::size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].dtype == dtype) return StoredType(i);
  OSTRO_CHECK(false, "no stored type for ", ostro::name(dtype));
  return {};
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string s = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i) s += ',';
    s += std::to_string(shape[i]);
  }
  return s + ']';
}

std::optional<std::int64_t> element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t n : shape)
    if (n < 0 || __builtin_mul_overflow(count, n, &count)) return {};
  return count;
}

}  // namespace ostro::checkpoint
