#include "checkpoint/engine_reader.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checksum.h"

namespace ostro::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostRanks = 65536;

std::string range_text(const char* what, const Range& r) {
  return text(what, ' ', r.begin, ':', r.end);
}

Range intersect(const Range& a, const Range& b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

bool covers(const Range& outer, const Range& inner) {
  return outer.begin <= inner.begin && inner.end <= outer.end;
}

// Reads "rows 0:8 of 16, cols 0:4 of 4".
class PlaceParser {
 public:
  explicit PlaceParser(std::string_view text) : rest_(text) {}

  bool literal(std::string_view expected) {
    if (!rest_.starts_with(expected)) return false;
    rest_.remove_prefix(expected.size());
    return true;
  }
  bool number(std::int64_t& value) {
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc{}) return false;
    rest_.remove_prefix(std::size_t(end - rest_.data()));
    return value >= 0;
  }
  bool range(Range& range, std::int64_t& whole) {
    return number(range.begin) && literal(":") && number(range.end) && literal(" of ") &&
           number(whole) && range.begin <= range.end && range.end <= whole;
  }
  bool end() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

}  // namespace

std::vector<EngineFile> parse_engine_config(std::string_view content, const std::string& path) {
  const nlohmann::json parsed = parse_json(content, path);
  const JsonObject config(parsed, path);
  OSTRO_REQUIRE(
      config.has("format_version") || !config.has("model_type"), path,
      " belongs to a checkpoint, not to an engine: `ostro build` makes an engine from it");
  OSTRO_REQUIRE(config.has("format_version"), path,
                " has no \"format_version\": it does not belong to an engine that Ostro built");
  const std::int64_t version = config.integer("format_version", 1, INT64_MAX);
  OSTRO_REQUIRE(version == kEngineFormat, path, " was made by a newer Ostro, format ", version,
                "; this program reads ", kEngineFormat,
                ": use a newer Ostro or build the engine again");
  const nlohmann::json& list = config.at("files");
  OSTRO_REQUIRE(list.is_array() && !list.empty() && std::int64_t(list.size()) <= kMostRanks, path,
                ": \"files\" is ", shown(list), "; it must list the files of 1 to ", kMostRanks,
                " ranks");
  std::vector<EngineFile> files;
  for (const nlohmann::json& entry : list) {
    const std::string where = text(path, ", files[", files.size(), ']');
    const JsonObject file(entry, where);
    // Names are fixed, so that a config.json cannot point outside its directory.
    const std::string expected = rank_file_name(int(files.size()));
    OSTRO_REQUIRE(file.string("name") == expected, where, ": \"name\" is \"", file.string("name"),
                  "\"; it must be \"", expected, '"');
    files.push_back({.name = expected,
                     .bytes = std::uint64_t(file.integer("bytes", 0, INT64_MAX)),
                     .checksum = file.string("checksum")});
  }
  return files;
}

std::vector<EngineTensor> engine_tensors(const SafetensorsHeader& header, const std::string& path) {
  std::vector<EngineTensor> tensors;
  tensors.reserve(header.tensors.size());
  for (const TensorInfo& info : header.tensors) {
    EngineTensor t;
    t.name = info.name;
    const auto dtype = to_dtype(info.type);
    OSTRO_REQUIRE(dtype, path, ": tensor \"", info.name, "\" is ", name(info.type),
                  ", which no engine holds");
    t.dtype = *dtype;
    const auto place = header.metadata.find(info.name);
    OSTRO_REQUIRE(place != header.metadata.end(), path, ": tensor \"", info.name,
                  "\" has no entry in __metadata__, so it is not part of an engine");
    PlaceParser parser(place->second);
    OSTRO_REQUIRE(parser.literal("rows ") && parser.range(t.row_range, t.rows) &&
                      parser.literal(", cols ") && parser.range(t.col_range, t.cols) &&
                      parser.end() && element_count({t.rows, t.cols}),
                  path, ": __metadata__ of tensor \"", info.name, "\" is \"",
                  place->second.substr(0, 100), "\"; it must be \"rows B:E of N, cols B:E of N\"");
    const std::vector<std::int64_t> block = {t.row_range.size(), t.col_range.size()};
    OSTRO_REQUIRE(info.shape == block, path, ": tensor \"", info.name, "\" has shape ",
                  shape_text(info.shape), ", but __metadata__ says ", place->second);
    tensors.push_back(std::move(t));
  }
  return tensors;
}

EngineReader::EngineReader(const fs::path& dir, Absent absent) : dir_(dir) {
  const fs::path config_path = dir / "config.json";
  std::error_code error;
  OSTRO_REQUIRE(fs::exists(config_path, error), "there is no engine in ", dir.string(),
                ": it has no config.json; `ostro build --output_dir ", dir.string(), "` makes one");
  config_text_ = read_file(config_path, kLongestConfig);
  files_ = parse_engine_config(config_text_, config_path.string());
  for (const EngineFile& file : files_) {
    const fs::path path = dir / file.name;
    if (absent == Absent::allowed && !fs::exists(path, error)) {
      absent_.push_back(file.name);
      continue;
    }
    OSTRO_REQUIRE(fs::exists(path, error), "the engine ", dir.string(), " lacks ", file.name,
                  ", one of the ", files_.size(), " files of its config.json: copy it again");
    const std::uint64_t bytes = fs::file_size(path, error);
    OSTRO_REQUIRE(!error && bytes == file.bytes, path.string(), " has ", bytes,
                  " bytes, but config.json says ", file.bytes,
                  ": it was cut short or replaced; copy it again");
    maps_.push_back(std::make_unique<SafetensorsFile>(path));
    add_rank(*maps_.back());
  }
}

void EngineReader::add_rank(const SafetensorsFile& file) {
  const std::string path = file.map().path().string();
  const std::vector<EngineTensor> places = engine_tensors(file.header(), path);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const EngineTensor& t = places[i];
    const TensorInfo& info = file.tensors()[i];
    const auto [it, is_new] = matrices_.try_emplace(info.name);
    Matrix& matrix = it->second;
    if (is_new) {
      matrix.shape = {t.dtype, t.rows, t.cols};
      names_.push_back(info.name);
    }
    const MatrixShape& s = matrix.shape;
    OSTRO_REQUIRE(s.dtype == t.dtype && s.rows == t.rows && s.cols == t.cols, path, ": tensor \"",
                  t.name, "\" is part of a ", ostro::name(t.dtype), " [", t.rows, ',', t.cols,
                  "], in an earlier rank's file of a ", ostro::name(s.dtype), " [", s.rows, ',',
                  s.cols, ']');
    matrix.pieces.push_back({&file, info.offset, t.row_range, t.col_range});
  }
}

const EngineReader::Matrix& EngineReader::find(std::string_view name) const {
  const auto it = matrices_.find(name);
  OSTRO_REQUIRE(it != matrices_.end(), "the engine ", dir_.string(), " has no tensor \"", name, '"',
                absent_text());
  return it->second;
}

// Where a part that is lacking may be.
std::string EngineReader::absent_text() const {
  std::string names;
  for (const std::string& name : absent_) names += (names.empty() ? "; not here: " : ", ") + name;
  return names;
}

MatrixShape EngineReader::shape_of(std::string_view name) const { return find(name).shape; }

HostMatrix EngineReader::read(std::span<const Slice> stacked) const {
  OSTRO_CHECK(!stacked.empty(), "no slices");
  const MatrixShape first = shape_of(stacked.front().name);
  const std::int64_t cols = stacked.front().cols.size();
  std::int64_t rows = 0;
  for (const Slice& s : stacked) {
    const MatrixShape shape = shape_of(s.name);
    OSTRO_REQUIRE(covers({0, shape.rows}, s.rows) && covers({0, shape.cols}, s.cols) &&
                      s.rows.size() >= 0 && s.cols.size() >= 0,
                  "the engine ", dir_.string(), " has tensor \"", s.name, "\" as [", shape.rows,
                  ',', shape.cols, "]; wanted are ", range_text("rows", s.rows), " and ",
                  range_text("columns", s.cols));
    OSTRO_REQUIRE(shape.dtype == first.dtype && s.cols.size() == cols, "the engine ", dir_.string(),
                  " has tensor \"", s.name, "\" in ", ostro::name(shape.dtype), " and ",
                  s.cols.size(), " columns, but \"", stacked.front().name, "\" above it in ",
                  ostro::name(first.dtype), " and ", cols);
    rows += s.rows.size();
  }
  HostMatrix result;
  if (const std::byte* data = mapped(stacked)) {
    result.view = matrix(const_cast<std::byte*>(data), first.dtype, rows, cols);
    return result;
  }
  result.owned = allocate_host(std::size_t(rows * cols) * size_of(first.dtype));
  result.view = matrix(result.owned.data(), first.dtype, rows, cols);
  std::byte* out = static_cast<std::byte*>(result.owned.data());
  for (const Slice& s : stacked) {
    assemble(s, out);
    out += std::size_t(s.rows.size() * cols) * size_of(first.dtype);
  }
  return result;
}

// Where the whole stack lies in one file, or nullptr if it does not.
const std::byte* EngineReader::mapped(std::span<const Slice> stacked) const {
  const auto continues_at = [&](const Slice& s, const Piece& piece) -> const std::byte* {
    if (piece.cols != s.cols || !covers(piece.rows, s.rows)) return nullptr;
    const std::size_t row_bytes = std::size_t(s.cols.size()) * size_of(find(s.name).shape.dtype);
    return piece.file->map().bytes().data() + piece.offset +
           std::size_t(s.rows.begin - piece.rows.begin) * row_bytes;
  };
  const auto follow = [&](const std::byte* start) {
    const std::byte* next = start;
    for (const Slice& s : stacked) {
      const Matrix& m = find(s.name);
      if (std::none_of(m.pieces.begin(), m.pieces.end(),
                       [&](const Piece& p) { return continues_at(s, p) == next; }))
        return false;
      next += std::size_t(s.rows.size() * s.cols.size()) * size_of(m.shape.dtype);
    }
    return true;
  };
  const Matrix& first = find(stacked.front().name);
  for (const Piece& piece : first.pieces) {
    const std::byte* start = continues_at(stacked.front(), piece);
    const bool aligned = reinterpret_cast<std::uintptr_t>(start) % size_of(first.shape.dtype) == 0;
    if (start && aligned && follow(start)) return start;
  }
  return nullptr;
}

// Copies the slice from the blocks that hold it: takes from each block what is still missing.
void EngineReader::assemble(const Slice& slice, std::byte* out) const {
  struct Rectangle {
    Range rows, cols;
  };
  const Matrix& m = find(slice.name);
  const std::size_t element = size_of(m.shape.dtype);
  const auto copy = [&](const Piece& piece, const Rectangle& r) {
    const std::byte* from = piece.file->map().bytes().data() + piece.offset;
    const std::size_t bytes = std::size_t(r.cols.size()) * element;
    for (std::int64_t i = r.rows.begin; i < r.rows.end; ++i) {
      const std::int64_t at =
          (i - piece.rows.begin) * piece.cols.size() + r.cols.begin - piece.cols.begin;
      const std::int64_t to =
          (i - slice.rows.begin) * slice.cols.size() + r.cols.begin - slice.cols.begin;
      std::memcpy(out + std::size_t(to) * element, from + std::size_t(at) * element, bytes);
    }
  };
  std::vector<Rectangle> missing;
  if (slice.rows.size() > 0 && slice.cols.size() > 0) missing.push_back({slice.rows, slice.cols});
  for (const Piece& piece : m.pieces) {
    std::vector<Rectangle> left;
    for (const Rectangle& want : missing) {
      const Rectangle have = {intersect(want.rows, piece.rows), intersect(want.cols, piece.cols)};
      if (have.rows.size() == 0 || have.cols.size() == 0) {
        left.push_back(want);
        continue;
      }
      copy(piece, have);
      const auto keep = [&](Range rows, Range cols) {
        if (rows.size() > 0 && cols.size() > 0) left.push_back({rows, cols});
      };
      keep({want.rows.begin, have.rows.begin}, want.cols);
      keep({have.rows.end, want.rows.end}, want.cols);
      keep(have.rows, {want.cols.begin, have.cols.begin});
      keep(have.rows, {have.cols.end, want.cols.end});
    }
    missing = std::move(left);
    if (missing.empty()) return;
  }
  OSTRO_REQUIRE(missing.empty(), "the engine ", dir_.string(), " lacks ",
                range_text("rows", missing.front().rows), ", ",
                range_text("columns", missing.front().cols), " of tensor \"", slice.name,
                "\": no rank's file holds them", absent_text());
}

void EngineReader::release(const View& view) const {
  const auto* data = static_cast<const std::byte*>(view.data);
  for (const auto& file : maps_) {
    const auto map = file->map().bytes();
    if (std::less_equal<>{}(map.data(), data) && std::less<>{}(data, map.data() + map.size()))
      file->map().release(std::size_t(data - map.data()), view.bytes());
  }
}

void EngineReader::verify(
    const std::function<void(std::uint64_t done, std::uint64_t total)>& progress) const {
  OSTRO_CHECK(absent_.empty(), absent_.size(), " files are absent");
  constexpr std::size_t kChunk = 8 << 20;
  std::uint64_t done = 0, total = 0;
  for (const EngineFile& file : files_) total += file.bytes;
  std::string damaged;
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const MappedFile& map = maps_[i]->map();
    Checksum sum;
    for (std::size_t at = 0; at < map.bytes().size(); at += kChunk) {
      const auto chunk = map.bytes().subspan(at, std::min(kChunk, map.bytes().size() - at));
      map.will_need(at + chunk.size(), kChunk);
      sum.add(chunk);
      map.release(at, chunk.size());
      done += chunk.size();
      if (progress) progress(done, total);
    }
    if (sum.text() != files_[i].checksum)
      damaged += text(damaged.empty() ? "" : ", ", files_[i].name, " (", sum.text(),
                      ", config.json says ", files_[i].checksum, ')');
  }
  OSTRO_REQUIRE(damaged.empty(), "the engine ", dir_.string(), " is damaged: the checksum of ",
                damaged, " is wrong: copy or build it again");
  const auto config = parse_json(config_text_, "config.json");
  const std::string expected = JsonObject(config, "config.json").string("config_checksum");
  OSTRO_REQUIRE(config_checksum(config) == expected, "config.json of the engine ", dir_.string(),
                " was changed after the build: its checksum is ", config_checksum(config),
                ", it says ", expected);
}

}  // namespace ostro::checkpoint
