// A checkpoint directory: its configuration and its tensors by name, wherever they lie.
//
//   const Checkpoint checkpoint("Mixtral-8x7B-v0.1");
//   for (const Checkpoint::Part& part : checkpoint.parts("model.norm.weight"))
//     use(part.info->shape, part.bytes());
//
// Hugging Face: config.json with model.safetensors, or model.safetensors.index.json and its shards,
// or the same as pytorch_model.bin. Meta and Mistral: params.json with consolidated.safetensors or
// consolidated.NN.pth. Opening reads headers only; everything that is missing or damaged is an
// InvalidArgument that names the file and the cure. const members may be called from any number of
// threads.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/tensor_info.h"
#include "checkpoint/weight_file.h"

namespace ostro::checkpoint {

class Checkpoint {
 public:
  enum class Format { hugging_face, meta };

  // A tensor in one file.
  struct Part {
    const WeightFile* file;
    const TensorInfo* info;

    // In the file's map.
    std::span<const std::byte> bytes() const { return file->bytes(*info); }
    // Copies the tensor's bytes from `offset` on, without making pages of the map resident.
    void read(std::size_t offset, std::span<std::byte> out) const {
      file->reader.read(info->offset + offset, out);
    }
    // The bytes [offset, offset + bytes) of the tensor, and the little around them that the kernel
    // maps along, leave this process's memory; a later read brings them back.
    void release(std::size_t offset, std::size_t bytes) const;
    // The bytes will be read soon.
    void will_need(std::size_t offset, std::size_t bytes) const;
  };

  explicit Checkpoint(const std::filesystem::path& dir);

  Format format() const { return format_; }
  const std::filesystem::path& dir() const { return dir_; }
  // config.json or params.json.
  const std::filesystem::path& config_path() const { return config_path_; }
  const std::string& config_text() const { return config_text_; }

  // False if the directory has a configuration and no weight file or index at all.
  bool has_weights() const { return !files_.empty(); }

  // All tensors, in the order of the files.
  const std::vector<std::string_view>& names() const { return names_; }
  // Empty if there is no such tensor. Several parts, in the files' order, only if model-parallel
  // training left a piece of the tensor in each consolidated.NN file.
  std::span<const Part> parts(std::string_view name) const;

 private:
  void find_hugging_face();
  void find_meta();
  void open_index(const std::filesystem::path& index);
  void add_file(const std::filesystem::path& path, bool pieces_allowed);

  std::filesystem::path dir_;
  Format format_ = Format::hugging_face;
  std::filesystem::path config_path_;
  std::string config_text_;
  std::vector<std::unique_ptr<WeightFile>> files_;
  std::unordered_map<std::string_view, std::vector<Part>> parts_;
  std::vector<std::string_view> names_;
};

}  // namespace ostro::checkpoint
