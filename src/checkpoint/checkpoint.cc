#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/json.h"

namespace ostro::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLongestModelConfig = 16 << 20;
constexpr std::size_t kLongestIndex = 256 << 20;
// A page fault maps this much around the page (fault_around_bytes), released parts included.
constexpr std::size_t kFaultAround = 64 << 10;

bool present(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::vector<std::string> file_names(const fs::path& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error))
    names.push_back(entry.path().filename());
  OSTRO_REQUIRE(!error, "cannot list ", dir.string(), ": ", error.message());
  std::sort(names.begin(), names.end());
  return names;
}

// Any file that holds weights, of whatever program, or points to them. So that nobody gets dummy
// weights for a checkpoint that is there but not complete.
bool is_weight_file(std::string_view name) {
  constexpr std::string_view kEndings[] = {".safetensors", ".bin",  ".pt", ".pth", ".ckpt",
                                           ".msgpack",     ".gguf", ".h5", ".npz", ".index.json"};
  if (name == "training_args.bin") return false;
  return std::any_of(std::begin(kEndings), std::end(kEndings),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

// "a, b, c, d and 5 more"
std::string list_text(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 4;
  std::string s;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i) s += (i ? ", " : "") + names[i];
  if (names.size() > kShown) s += text(" and ", names.size() - kShown, " more");
  return s;
}

// N of "consolidated.N.pth", or -1.
int consolidated_index(std::string_view name) {
  constexpr std::string_view kPrefix = "consolidated.";
  if (!name.starts_with(kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  int index = 0;
  std::size_t digits = 0;
  while (digits < name.size() && digits < 6 && '0' <= name[digits] && name[digits] <= '9')
    index = index * 10 + (name[digits++] - '0');
  const std::string_view ending = name.substr(digits);
  return digits > 0 && (ending == ".pth" || ending == ".pt" || ending == ".safetensors") ? index
                                                                                         : -1;
}

}  // namespace

void Checkpoint::Part::release(std::size_t offset, std::size_t bytes) const {
  const std::size_t begin = info->offset + offset;
  const std::size_t before = std::min(begin, kFaultAround);
  file->map.release(begin - before, before + bytes + kFaultAround);
}

void Checkpoint::Part::will_need(std::size_t offset, std::size_t bytes) const {
  if (offset < info->bytes)
    file->reader.will_need(info->offset + offset, std::min(bytes, info->bytes - offset));
}

Checkpoint::Checkpoint(const fs::path& dir) : dir_(dir) {
  std::error_code error;
  OSTRO_REQUIRE(present(dir), "there is no directory ", dir.string(),
                "; --model_dir names the directory of a Hugging Face or Meta checkpoint");
  OSTRO_REQUIRE(fs::is_directory(dir, error), dir.string(),
                " is a file; --model_dir names the directory of a checkpoint");
  const bool hugging_face = present(dir / "config.json");
  const bool meta = present(dir / "params.json");
  OSTRO_REQUIRE(hugging_face || meta, dir.string(),
                " has neither config.json (Hugging Face) nor params.json (Meta), so it is no "
                "checkpoint; copy or download the file that is missing");
  if (hugging_face) find_hugging_face();
  // Mistral publishes both forms in one directory.
  if (meta && files_.empty()) find_meta();
  if (!files_.empty()) return;
  std::vector<std::string> left = file_names(dir);
  std::erase_if(left, [](const std::string& name) { return !is_weight_file(name); });
  OSTRO_REQUIRE(
      left.empty(), dir.string(), " holds ", list_text(left),
      ", but none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
      "pytorch_model.bin.index.json, or params.json with consolidated.*: copy or download "
      "the file that is missing");
}

void Checkpoint::find_hugging_face() {
  format_ = Format::hugging_face;
  config_path_ = dir_ / "config.json";
  config_text_ = read_file(config_path_, kLongestModelConfig);
  for (const char* name : {"model.safetensors", "pytorch_model.bin"}) {
    const fs::path index = dir_ / (std::string(name) + ".index.json");
    if (present(index)) return open_index(index);
    if (present(dir_ / name)) return add_file(dir_ / name, false);
  }
}

void Checkpoint::find_meta() {
  std::vector<std::string> shards;
  const fs::path index = dir_ / "consolidated.safetensors.index.json";
  const bool single = present(dir_ / "consolidated.safetensors");
  if (!present(index) && !single) {
    std::set<int> numbers;
    for (const std::string& name : file_names(dir_))
      if (const int n = consolidated_index(name); n >= 0) {
        OSTRO_REQUIRE(numbers.insert(n).second, dir_.string(), " has several files consolidated.",
                      n, "; remove all but one");
        shards.push_back(name);
      }
    // Which files there should be is written nowhere; a hole shows that one is missing.
    OSTRO_REQUIRE(numbers.empty() || *numbers.rbegin() + 1 == int(numbers.size()), dir_.string(),
                  " has ", list_text(shards),
                  ", but not every file from consolidated.00 on: copy or "
                  "download the missing ones");
    std::sort(shards.begin(), shards.end(), [](const std::string& a, const std::string& b) {
      return consolidated_index(a) < consolidated_index(b);
    });
  }
  if (config_path_.empty() || present(index) || single || !shards.empty()) {
    format_ = Format::meta;
    config_path_ = dir_ / "params.json";
    config_text_ = read_file(config_path_, kLongestModelConfig);
  }
  if (present(index)) return open_index(index);
  if (single) return add_file(dir_ / "consolidated.safetensors", false);
  for (const std::string& name : shards) add_file(dir_ / name, shards.size() > 1);
}

void Checkpoint::open_index(const fs::path& index) {
  const auto parsed = parse_json(read_file(index, kLongestIndex), index.string());
  const nlohmann::json& map = JsonObject(parsed, index.string()).at("weight_map");
  OSTRO_REQUIRE(map.is_object() && !map.empty(), index.string(), ": \"weight_map\" is ", shown(map),
                "; it must name a file for each tensor");
  std::set<std::string> shards;
  for (const auto& [tensor, file] : map.items()) {
    OSTRO_REQUIRE(file.is_string(), index.string(), ": the file of tensor \"", tensor, "\" is ",
                  shown(file), "; it must be a string");
    const auto& name = file.get_ref<const std::string&>();
    OSTRO_REQUIRE(!name.empty() && name.find('/') == std::string::npos && name != "..",
                  index.string(), ": the file of tensor \"", tensor, "\" is \"", name,
                  "\"; it must be in the same directory");
    shards.insert(name);
  }
  std::vector<std::string> missing;
  for (const std::string& name : shards)
    if (!present(dir_ / name)) missing.push_back(name);
  OSTRO_REQUIRE(missing.empty(), dir_.string(), " lacks ", list_text(missing), " of the ",
                shards.size(), " files that ", index.filename().string(),
                " lists: copy or download what is missing");
  for (const std::string& name : shards) add_file(dir_ / name, false);
  for (const auto& [tensor, file] : map.items()) {
    const auto found = parts(tensor);
    const auto& name = file.get_ref<const std::string&>();
    OSTRO_REQUIRE(!found.empty() && found.front().file->map.path().filename() == name,
                  (dir_ / name).string(), " does not hold tensor \"", tensor, "\", which ",
                  index.filename().string(),
                  " says is there: they belong to different checkpoints");
  }
}

void Checkpoint::add_file(const fs::path& path, bool pieces_allowed) {
  files_.push_back(std::make_unique<WeightFile>(open_weight_file(path)));
  const WeightFile& file = *files_.back();
  for (const TensorInfo& info : file.tensors) {
    auto& parts = parts_[info.name];
    if (parts.empty()) names_.push_back(info.name);
    OSTRO_REQUIRE(parts.empty() || pieces_allowed, path.string(), " holds tensor \"", info.name,
                  "\", and so does ", parts.front().file->map.path().filename().string());
    parts.push_back({&file, &info});
  }
}

std::span<const Checkpoint::Part> Checkpoint::parts(std::string_view name) const {
  const auto it = parts_.find(name);
  if (it == parts_.end()) return {};
  return it->second;
}

}  // namespace ostro::checkpoint
