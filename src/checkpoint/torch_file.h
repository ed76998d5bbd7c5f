// Checkpoints that torch.save wrote: a zip archive of a pickle and one raw entry for each storage.
//
// Nothing in the pickle is executed. A pickle is a program; this reader knows the few instructions
// and constructors that torch.save emits for a dictionary of tensors and refuses any other by name.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/tensor_info.h"

namespace ostro::checkpoint {

// `file` is the whole archive; `path` is for messages. Offsets of the tensors count from the start
// of the file; tensors that share a storage share bytes. Throws InvalidArgument for a file that is
// damaged, Unsupported for one that is not a plain dictionary of contiguous tensors.
std::vector<TensorInfo> parse_torch_file(std::span<const std::byte> file, const std::string& path);

// A tensor as the pickle describes it: elements [offset, offset + product of shape) of a storage.
struct PickledTensor {
  std::string name;
  std::string storage;  // key of the archive entry
  StoredType type = StoredType::f32;
  std::int64_t offset = 0;  // elements
  std::vector<std::int64_t> shape;
};

// The dictionary in a pickle (the archive's data.pkl).
std::vector<PickledTensor> read_state_dict(std::span<const std::byte> pickle,
                                           const std::string& path);

}  // namespace ostro::checkpoint
