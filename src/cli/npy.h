// NumPy's .npy files (format 1.0, docs: numpy.lib.format).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace ostro::cli {

// Writes a C-order array by replace_file().
void write_npy(const std::filesystem::path& path, std::span<const float> values,
               const std::vector<std::int64_t>& shape);
void write_npy(const std::filesystem::path& path, std::span<const std::int32_t> values,
               const std::vector<std::int64_t>& shape);

// Reads a one- or two-dimensional array of int32 or int64 as rows. Throws InvalidArgument naming
// what is not so.
std::vector<std::vector<std::int32_t>> read_npy_rows(const std::filesystem::path& path);

}  // namespace ostro::cli
