// One file of a checkpoint: safetensors, or what torch.save wrote.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "base/file.h"
#include "checkpoint/file_reader.h"
#include "checkpoint/tensor_info.h"

namespace ostro::checkpoint {

struct WeightFile {
  MappedFile map;
  FileReader reader;
  std::vector<TensorInfo> tensors;  // offsets count from the start of the file

  std::span<const std::byte> bytes(const TensorInfo& info) const {
    return map.bytes().subspan(info.offset, info.bytes);
  }
};

// By the name: .safetensors, or .bin, .pt and .pth for torch.save. Throws InvalidArgument, naming
// the file, if it is anything else than its name says or holds a tensor twice.
WeightFile open_weight_file(const std::filesystem::path& path);

}  // namespace ostro::checkpoint
