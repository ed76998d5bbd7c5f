#include "checkpoint/torch_file.h"

#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "checkpoint/zip.h"

namespace ostro::checkpoint {
namespace {

constexpr const char* kSaveAgain =
    "save it again with a current PyTorch: torch.save(torch.load(\"FILE\", map_location=\"cpu\"), "
    "\"FILE\")";

void refuse_what_torch_did_not_write(std::string_view file, const std::string& path) {
  OSTRO_REQUIRE(!file.starts_with("version https://git-lfs"), path,
                " is a Git LFS pointer, not the weights: run `git lfs pull` in its directory");
  // Before version 1.6, torch.save wrote several pickles one after the other.
  OSTRO_SUPPORTED(
      !file.starts_with("\x80"), path,
      " is in the format of PyTorch before 1.6, and Ostro reads the zip format that came "
      "after it; ",
      kSaveAgain);
  OSTRO_REQUIRE(file.starts_with("PK\x03\x04"), path, " is not a file that torch.save wrote (its ",
                file.size(), " bytes do not start as a zip archive)");
}

}  // namespace

std::vector<TensorInfo> parse_torch_file(std::span<const std::byte> file, const std::string& path) {
  const std::string_view content(reinterpret_cast<const char*>(file.data()), file.size());
  refuse_what_torch_did_not_write(content, path);
  const std::vector<ZipEntry> entries = parse_zip(file, path);
  std::unordered_map<std::string_view, const ZipEntry*> by_name;
  for (const ZipEntry& e : entries) by_name.emplace(e.name, &e);

  // Everything is in one folder, which has the name that the file was saved under.
  const ZipEntry* pickle = nullptr;
  for (const ZipEntry& e : entries)
    if (e.name.ends_with("/data.pkl")) pickle = &e;
  OSTRO_REQUIRE(pickle, path, " is a zip archive without data.pkl: torch.save did not write it");
  const std::string folder(pickle->name.substr(0, pickle->name.size() - 8));
  const auto stored = [&](const std::string& name) -> const ZipEntry& {
    const auto it = by_name.find(name);
    OSTRO_REQUIRE(it != by_name.end(), path, " lacks the archive entry \"", name,
                  "\" that its pickle names");
    OSTRO_SUPPORTED(it->second->stored, path, ": the archive entry \"", name,
                    "\" is compressed, and torch.save stores them as they are; ", kSaveAgain);
    return *it->second;
  };
  if (by_name.contains(folder + "byteorder")) {
    const ZipEntry& order = stored(folder + "byteorder");
    OSTRO_SUPPORTED(content.substr(order.offset, order.bytes) == "little", path,
                    " was written on a big-endian machine; Ostro reads little-endian files");
  }

  const ZipEntry& program = stored(folder + "data.pkl");
  std::vector<TensorInfo> tensors;
  for (PickledTensor& t : read_state_dict(file.subspan(program.offset, program.bytes), path)) {
    const ZipEntry& storage = stored(folder + "data/" + t.storage);
    const auto elements = element_count(t.shape);
    const std::uint64_t in_storage = storage.bytes / size_of(t.type);
    OSTRO_REQUIRE(elements && t.offset >= 0 && std::uint64_t(t.offset) <= in_storage &&
                      std::uint64_t(*elements) <= in_storage - std::uint64_t(t.offset),
                  path, ": tensor \"", t.name, "\" has shape ", shape_text(t.shape),
                  " from element ", t.offset, " on, its storage has only ", in_storage);
    tensors.push_back({.name = std::move(t.name),
                       .type = t.type,
                       .shape = std::move(t.shape),
                       .offset = storage.offset + std::uint64_t(t.offset) * size_of(t.type),
                       .bytes = std::uint64_t(*elements) * size_of(t.type)});
  }
  return tensors;
}

}  // namespace ostro::checkpoint
