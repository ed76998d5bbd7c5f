// Reads an engine directory (docs/engine_format.md), whatever parallel layout it was built for.
//
//   const EngineReader engine("engines/mixtral");
//   const HostMatrix qkv = engine.read({{{"layers.0.q", {0, 512}, {0, 4096}},
//                                        {"layers.0.k", {0, 128}, {0, 4096}},
//                                        {"layers.0.v", {0, 128}, {0, 4096}}}});
//
// A rank asks for the slices of the logical matrices that it needs; the reader finds the blocks
// that hold them, in however many rank files, and touches no other page. const members may be
// called from any number of threads. Views into the maps are valid while the reader lives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/math.h"
#include "checkpoint/engine_writer.h"
#include "checkpoint/safetensors.h"
#include "tensor/buffer.h"
#include "tensor/view.h"

namespace ostro::checkpoint {

// A rectangle of a logical matrix.
struct Slice {
  std::string name;
  Range rows;
  Range cols;
};

// A contiguous host matrix: a view into the engine's map (read-only: do not write through it), or
// into `owned`.
struct HostMatrix {
  View view;
  Buffer owned;
};

struct MatrixShape {
  DType dtype = DType::bf16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

// What config.json says of one rank file.
struct EngineFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string checksum;
};

// The "files" of an engine's config.json, after its version has been checked. `path` is for
// messages.
std::vector<EngineFile> parse_engine_config(std::string_view text, const std::string& path);

// Where each tensor of a rank file sits in its logical matrix: one EngineTensor for each of
// header.tensors, in that order. `path` is for messages.
std::vector<EngineTensor> engine_tensors(const SafetensorsHeader& header, const std::string& path);

// Whether rank files may be absent: of several hosts each needs those of its own ranks alone.
enum class Absent { refused, allowed };

class EngineReader {
 public:
  // Throws InvalidArgument, with what was found and what was wanted, unless `dir` holds an engine
  // of a version that this program reads, complete but for what may be absent.
  explicit EngineReader(const std::filesystem::path& dir, Absent absent = Absent::refused);

  const std::filesystem::path& dir() const { return dir_; }
  const std::string& config_text() const { return config_text_; }
  int ranks() const { return int(files_.size()); }
  const std::vector<EngineFile>& files() const { return files_; }
  // The names of the files that are not here.
  const std::vector<std::string>& absent() const { return absent_; }

  bool has(std::string_view name) const { return matrices_.contains(name); }
  // Throws InvalidArgument if the engine has no such matrix.
  MatrixShape shape_of(std::string_view name) const;
  // All logical matrices, in the order of the files.
  const std::vector<std::string_view>& names() const { return names_; }

  // The row-wise stack of the slices, which have one dtype and one width. No copy is made if they
  // lie one after the other in one file. Throws InvalidArgument naming the tensor and the range if
  // the engine lacks a part.
  HostMatrix read(std::span<const Slice> stacked) const;
  HostMatrix read(const Slice& slice) const { return read(std::span(&slice, 1)); }

  // Drops the pages of a view made by read() from this process's memory (after they were copied to
  // where they are used); reading it again brings them back. Views of owned memory are ignored.
  void release(const View& view) const;

  // Reads every byte of a complete engine and throws InvalidArgument naming the files whose
  // checksum is not what config.json says. `progress` is told how much is done.
  void verify(
      const std::function<void(std::uint64_t done, std::uint64_t total)>& progress = {}) const;

 private:
  struct Piece {
    const SafetensorsFile* file;
    std::uint64_t offset;
    Range rows;
    Range cols;
  };
  struct Matrix {
    MatrixShape shape;
    std::vector<Piece> pieces;
  };

  void add_rank(const SafetensorsFile& file);
  const Matrix& find(std::string_view name) const;
  const std::byte* mapped(std::span<const Slice> stacked) const;
  void assemble(const Slice& slice, std::byte* out) const;
  std::string absent_text() const;

  std::filesystem::path dir_;
  std::string config_text_;
  std::vector<EngineFile> files_;
  std::vector<std::string> absent_;
  std::vector<std::unique_ptr<SafetensorsFile>> maps_;
  std::unordered_map<std::string_view, Matrix> matrices_;
  std::vector<std::string_view> names_;
};

}  // namespace ostro::checkpoint
