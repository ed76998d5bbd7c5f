// Writes an engine directory: all of it or nothing (docs/engine_format.md).
//
//   EngineWriter writer("engines/mixtral");
//   RankWriter& rank = writer.rank(0, tensors);      // one for each rank, each in its own thread
//   for (...) rank.append(bytes);                    // the tensors' bytes, in order
//   rank.finish();
//   writer.commit(R"({"model": {...}, "mapping": {...}})");
//
// Everything is written to a hidden directory beside the output and renamed last. Whatever happens
// before commit() returns, the output directory is as it was. The directory of a build that was
// killed is removed by the next build to the same place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/math.h"
#include "checkpoint/checksum.h"
#include "checkpoint/staging.h"
#include "tensor/dtype.h"

namespace ostro::checkpoint {

inline constexpr int kEngineFormat = 1;

// A block of a logical matrix of [rows, cols], as a rank file stores it: row-major, contiguous.
struct EngineTensor {
  std::string name;
  DType dtype = DType::bf16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  Range row_range;
  Range col_range;

  std::uint64_t bytes() const {
    return std::uint64_t(row_range.size() * col_range.size()) * size_of(dtype);
  }
};

// "rank3.safetensors"
std::string rank_file_name(int rank);

// One rank's file. Belongs to one thread; different ranks may be written at the same time.
class RankWriter {
 public:
  // Made by EngineWriter::rank().
  RankWriter(const std::filesystem::path& path, const std::vector<EngineTensor>& tensors);
  ~RankWriter();

  // The next bytes of the file: tensors in their order, cut anywhere. Throws DeviceError if the
  // disk refuses them.
  void append(std::span<const std::byte> bytes);

  // Flushes to the disk and closes. All bytes of all tensors must have been appended.
  void finish();

  const std::string& name() const { return name_; }
  std::uint64_t bytes() const { return bytes_; }  // of the whole file
  bool finished() const { return finished_; }
  std::string checksum() const;  // of the bytes so far

 private:
  std::string name_;
  std::uint64_t bytes_ = 0;
  FileWriter file_;
  std::unique_ptr<Checksum> checksum_;
  bool finished_ = false;
};

class EngineWriter {
 public:
  // `output_dir` must not exist, or be an empty directory, or an engine that Ostro wrote, which
  // commit() replaces. Throws InvalidArgument if it is anything else or cannot be created.
  explicit EngineWriter(const std::filesystem::path& output_dir);
  // Without commit(): removes what was written, and the parent directories that it had to create.
  ~EngineWriter();
  EngineWriter(const EngineWriter&) = delete;

  // Throws DeviceError if the disk has less than `bytes` free.
  void require_space(std::uint64_t bytes) const;

  // Ranks 0, 1, 2 ... each once, from any thread. The writer stays valid until this object goes.
  RankWriter& rank(int index, const std::vector<EngineTensor>& tensors);

  // `config_json` is an object without "format_version", "files" and "config_checksum": those are
  // added here. All ranks must be finished and none missing.
  void commit(std::string_view config_json);

  // Of the rank files so far.
  std::uint64_t bytes() const;

 private:
  StagingDir staging_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<RankWriter>> ranks_;
};

}  // namespace ostro::checkpoint
