// Files of tests: small safetensors, and errors compared by type and text.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/temp_dir.h"
#include "checkpoint/safetensors.h"

namespace ostro::testing {

namespace fs = std::filesystem;

inline std::span<const std::byte> bytes_of(std::string_view s) {
  return std::as_bytes(std::span(s.data(), s.size()));
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// A safetensors file of this header text and data.
inline std::string container(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string s(8, '\0');
  std::memcpy(s.data(), &length, 8);
  return (s += header) += data;
}

// float32 tensors by name, shape and values.
struct Tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

inline std::string safetensors(const std::vector<Tensor>& tensors) {
  std::vector<checkpoint::TensorInfo> infos;
  std::string data;
  for (const Tensor& t : tensors) {
    infos.push_back({.name = t.name, .type = checkpoint::StoredType::f32, .shape = t.shape});
    data += raw(t.values);
  }
  return checkpoint::safetensors_header(infos, {}) + data;
}

// The names in a directory, hidden ones too, sorted.
inline std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// Passes if `run` throws an E whose text has all of the parts.
template <class E>
void expect_error(const std::function<void()>& run, const std::vector<std::string>& parts) {
  try {
    run();
    ADD_FAILURE() << "nothing was thrown; wanted: " << parts.front();
  } catch (const E& e) {
    for (const std::string& part : parts)
      EXPECT_NE(std::string_view(e.what()).find(part), std::string_view::npos)
          << "\"" << part << "\" is not in: " << e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << "thrown was another type: " << e.what();
  }
}

}  // namespace ostro::testing
