#include "checkpoint/weight_file.h"

#include <string_view>
#include <unordered_set>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_file.h"

namespace ostro::checkpoint {

WeightFile open_weight_file(const std::filesystem::path& path) {
  WeightFile file;
  file.map = MappedFile(path);
  file.reader = FileReader(path);
  file.tensors = path.extension() == ".safetensors"
                     ? parse_safetensors(file.map.bytes(), path.string()).tensors
                     : parse_torch_file(file.map.bytes(), path.string());
  std::unordered_set<std::string_view> seen;
  for (const TensorInfo& t : file.tensors)
    OSTRO_REQUIRE(seen.insert(t.name).second, path.string(), " holds tensor \"", t.name,
                  "\" twice");
  return file;
}

}  // namespace ostro::checkpoint
