// The safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes.
//
//   const SafetensorsFile file("model.safetensors");
//   if (const TensorInfo* info = file.find("lm_head.weight"))
//     use(file.bytes(*info));
//
// Reading trusts nothing: a header that is not exactly right is an InvalidArgument that names the
// file, the tensor, the value found and the value wanted. const members may be called from any
// number of threads. Format: https://github.com/huggingface/safetensors
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/file.h"
#include "checkpoint/tensor_info.h"

namespace ostro::checkpoint {

struct SafetensorsHeader {
  std::vector<TensorInfo>
      tensors;  // in the order of their bytes; offsets count from the file start
  std::unordered_map<std::string, std::string> metadata;
};

// `file` is the whole file; `path` is for messages. The tensors fill the data part exactly: neither
// gaps nor overlaps.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& path);

// The first bytes of a file that holds `tensors` one after the other without gaps (`offset` and
// `bytes` of each are ignored); the data that follows starts at a multiple of 4096.
std::string safetensors_header(std::span<const TensorInfo> tensors,
                               std::span<const std::pair<std::string, std::string>> metadata);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const TensorInfo* find(std::string_view name) const;  // nullptr if there is none
  // "" if the file's metadata has no such key.
  std::string_view metadata(const std::string& key) const;

  std::span<const std::byte> bytes(const TensorInfo& info) const {
    return map_.bytes().subspan(info.offset, info.bytes);
  }
  const SafetensorsHeader& header() const { return header_; }
  const MappedFile& map() const { return map_; }

 private:
  MappedFile map_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, const TensorInfo*> index_;
};

}  // namespace ostro::checkpoint
