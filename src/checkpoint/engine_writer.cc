#include "checkpoint/engine_writer.h"

#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checksum.h"
#include "checkpoint/safetensors.h"

namespace ostro::checkpoint {
namespace {

// Hashed and written while it is in a core's L2.
constexpr std::size_t kChunk = 256 << 10;

// The block's place in its matrix; the inverse is engine_tensors().
std::string place_text(const EngineTensor& t) {
  return text("rows ", t.row_range.begin, ':', t.row_range.end, " of ", t.rows, ", cols ",
              t.col_range.begin, ':', t.col_range.end, " of ", t.cols);
}

std::string rank_header(const std::vector<EngineTensor>& tensors) {
  std::vector<TensorInfo> infos;
  std::vector<std::pair<std::string, std::string>> places;
  for (const EngineTensor& t : tensors) {
    const auto inside = [](const Range& r, std::int64_t n) {
      return 0 <= r.begin && r.begin <= r.end && r.end <= n;
    };
    OSTRO_CHECK(inside(t.row_range, t.rows) && inside(t.col_range, t.cols), t.name, ": ",
                place_text(t));
    infos.push_back({.name = t.name,
                     .type = stored_type(t.dtype),
                     .shape = {t.row_range.size(), t.col_range.size()}});
    places.emplace_back(t.name, place_text(t));
  }
  return safetensors_header(infos, places);
}

}  // namespace

std::string rank_file_name(int rank) { return text("rank", rank, ".safetensors"); }

RankWriter::RankWriter(const std::filesystem::path& path, const std::vector<EngineTensor>& tensors)
    : name_(path.filename()), file_(path), checksum_(std::make_unique<Checksum>()) {
  const std::string header = rank_header(tensors);
  bytes_ = header.size();
  for (const EngineTensor& t : tensors) bytes_ += t.bytes();
  append(std::as_bytes(std::span(header)));
}

RankWriter::~RankWriter() = default;

void RankWriter::append(std::span<const std::byte> bytes) {
  OSTRO_CHECK(!finished_ && bytes.size() <= bytes_ - file_.size(), name_, ": ", bytes.size(),
              " bytes after ", file_.size(), " of ", bytes_);
  while (!bytes.empty()) {
    const auto chunk = bytes.first(std::min(bytes.size(), kChunk));
    checksum_->add(chunk);
    file_.write(chunk);
    bytes = bytes.subspan(chunk.size());
  }
}

void RankWriter::finish() {
  OSTRO_CHECK(!finished_ && file_.size() == bytes_, name_, " has ", file_.size(), " bytes of ",
              bytes_);
  file_.close();
  finished_ = true;
}

std::string RankWriter::checksum() const { return checksum_->text(); }

EngineWriter::EngineWriter(const std::filesystem::path& output_dir) : staging_(output_dir) {}
EngineWriter::~EngineWriter() = default;

void EngineWriter::require_space(std::uint64_t bytes) const {
  std::error_code error;
  const auto space = std::filesystem::space(staging_.path(), error);
  if (!error && space.available < bytes)
    OSTRO_THROW(DeviceError, "the engine takes ", bytes, " bytes, but the disk of ",
                staging_.target().string(), " has only ", space.available, " free");
}

RankWriter& EngineWriter::rank(int index, const std::vector<EngineTensor>& tensors) {
  const auto path = staging_.path() / rank_file_name(index);
  auto writer = std::make_unique<RankWriter>(path, tensors);
  const std::lock_guard lock(mutex_);
  if (ranks_.size() <= std::size_t(index)) ranks_.resize(std::size_t(index) + 1);
  OSTRO_CHECK(!ranks_[std::size_t(index)], "rank ", index, " twice");
  return *(ranks_[std::size_t(index)] = std::move(writer));
}

std::uint64_t EngineWriter::bytes() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& rank : ranks_)
    if (rank) sum += rank->bytes();
  return sum;
}

void EngineWriter::commit(std::string_view config_json) {
  const nlohmann::json given = parse_json(config_json, "the engine's configuration");
  OSTRO_CHECK(given.is_object(), config_json);
  nlohmann::json files = nlohmann::json::array();
  for (const auto& rank : ranks_) {
    OSTRO_CHECK(rank && rank->finished(), "rank ", files.size(), " of ", ranks_.size(),
                " is not finished");
    files.push_back(
        {{"name", rank->name()}, {"bytes", rank->bytes()}, {"checksum", rank->checksum()}});
  }
  nlohmann::json config = given;
  config["format_version"] = kEngineFormat;
  config["files"] = std::move(files);
  config["config_checksum"] = config_checksum(config);

  FileWriter file(staging_.path() / "config.json");
  file.write(config.dump(2) + '\n');
  file.close();
  staging_.publish();
}

}  // namespace ostro::checkpoint
