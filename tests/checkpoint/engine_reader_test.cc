#include "checkpoint/engine_reader.h"

#include "checkpoint/engines.h"

namespace ostro::checkpoint {
namespace {

using namespace ostro::testing;

// `in_place`: it must not be a copy.
void expect_stack(const EngineReader& engine, const std::vector<Slice>& slices, bool in_place) {
  const HostMatrix m = engine.read(slices);
  EXPECT_TRUE(!in_place || m.owned.data() == nullptr) << slices.front().name;
  std::vector<float> wanted;
  for (const Slice& s : slices) {
    const auto block = block_of(s.name, s.rows, s.cols);
    wanted.insert(wanted.end(), block.begin(), block.end());
  }
  ASSERT_EQ(m.view.bytes(), wanted.size() * sizeof(float));
  EXPECT_EQ(m.view.cols, slices.front().cols.size());
  EXPECT_EQ(std::memcmp(m.view.data, wanted.data(), m.view.bytes()), 0) << slices.front().name;
  engine.release(m.view);
  EXPECT_EQ(std::memcmp(m.view.data, wanted.data(), m.view.bytes()), 0) << "after release";
}

// q [8,6], k and v [4,6], o [6,8] over tp ranks, as a model is cut; kv heads of 2 rows are
// replicated when there are more ranks than heads.
std::vector<EngineTensor> rank_of(std::int64_t rank, std::int64_t tp) {
  const Range q = part_of(8, rank, tp);
  const std::int64_t kv_head = rank * 2 / tp;
  const Range kv = tp <= 2 ? part_of(4, rank, tp) : Range{2 * kv_head, 2 * kv_head + 2};
  return {piece("q", 8, 6, q, {0, 6}), piece("k", 4, 6, kv, {0, 6}), piece("v", 4, 6, kv, {0, 6}),
          piece("o", 6, 8, {0, 6}, q)};
}

TEST(EngineReader, ReadsAnyCutFromAnyCut) {
  for (const std::int64_t built : {1, 2, 4}) {
    TempDir dir;
    std::vector<std::vector<EngineTensor>> ranks;
    for (std::int64_t r = 0; r < built; ++r) ranks.push_back(rank_of(r, built));
    write_engine(dir / "engine", ranks);
    const EngineReader engine(dir / "engine");
    EXPECT_EQ(engine.shape_of("o").rows, 6);
    EXPECT_EQ(engine.names(), (std::vector<std::string_view>{"q", "k", "v", "o"}));
    for (const std::int64_t wanted : {1, 2, 4})
      for (std::int64_t r = 0; r < wanted; ++r) {
        const auto t = rank_of(r, wanted);
        const bool same = built == wanted;
        expect_stack(engine,
                     {{"q", t[0].row_range, {0, 6}},
                      {"k", t[1].row_range, {0, 6}},
                      {"v", t[2].row_range, {0, 6}}},
                     same);
        expect_stack(engine, {{"o", {0, 6}, t[3].col_range}}, same);
        // Rows inside one block need no copy either.
        expect_stack(engine, {{"q", t[0].row_range, {0, 6}}}, built <= wanted);
      }
    expect_stack(engine, {{"o", {1, 5}, {3, 6}}}, false);
    expect_stack(engine, {{"q", {1, 7}, {2, 3}}}, false);
  }
}

TEST(EngineReader, NamesWhatIsMissing) {
  TempDir dir;
  write_engine(dir / "engine",
               {{piece("q", 8, 6, {0, 3}, {0, 6}), piece("o", 6, 8, {0, 6}, {4, 8})}});
  const EngineReader engine(dir / "engine");
  const auto refused = [&](Slice slice, const std::vector<std::string>& parts) {
    expect_error<InvalidArgument>([&] { engine.read(slice); }, parts);
  };
  refused({"q", {1, 5}, {0, 6}}, {"lacks rows 3:5, columns 0:6 of tensor \"q\""});
  refused({"o", {0, 6}, {2, 8}}, {"lacks rows 0:6, columns 2:4 of tensor \"o\""});
  refused({"q", {0, 9}, {0, 6}}, {"\"q\" as [8,6]", "rows 0:9"});
  refused({"x", {0, 1}, {0, 1}}, {"has no tensor \"x\""});
  EXPECT_THROW(engine.shape_of("x"), InvalidArgument);
}

class BrokenEngine : public ::testing::Test {
 protected:
  BrokenEngine() { write_engine(engine_, {{whole("a", 3, 4)}, {whole("b", 2, 2)}}); }

  // The configuration with `from` replaced.
  void change_config(const std::string& from, const std::string& to) {
    std::string config = read_file(engine_ / "config.json");
    const auto at = config.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_bytes(engine_ / "config.json", config.replace(at, from.size(), to));
  }
  void refused(const std::vector<std::string>& parts) {
    expect_error<InvalidArgument>([&] { EngineReader reader(engine_); }, parts);
  }

  TempDir dir_;
  fs::path engine_ = dir_ / "engine";
};

TEST_F(BrokenEngine, CutShort) {
  const std::string file = read_file(engine_ / "rank1.safetensors");
  write_bytes(engine_ / "rank1.safetensors", file.substr(0, file.size() - 3));
  refused({"rank1.safetensors has 4109 bytes, but config.json says 4112", "cut short"});
  fs::remove(engine_ / "rank1.safetensors");
  refused({"lacks rank1.safetensors, one of the 2 files"});
}

TEST_F(BrokenEngine, FilesThatMayBeAbsent) {
  fs::remove(engine_ / "rank1.safetensors");
  const EngineReader engine(engine_, Absent::allowed);
  EXPECT_EQ(engine.absent(), std::vector<std::string>{"rank1.safetensors"});
  EXPECT_EQ(engine.read({"a", {0, 3}, {0, 4}}).view.rows, 3);
  expect_error<InvalidArgument>(
      [&] {
        engine.read({"b", {0, 2}, {0, 2}});
      },
      {"has no tensor \"b\"; not here: rank1.safetensors"});
  EXPECT_THROW(engine.verify(), InternalError);
}

TEST_F(BrokenEngine, Newer) {
  change_config("\"format_version\": 1", "\"format_version\": 2");
  refused({"config.json was made by a newer Ostro, format 2; this program reads 1"});
}

TEST_F(BrokenEngine, Foreign) {
  write_bytes(engine_ / "config.json", R"({"model_type":"mixtral"})");
  refused({"belongs to a checkpoint, not to an engine", "`ostro build`"});
  write_bytes(engine_ / "config.json", R"({"name":"gpt"})");
  refused({"has no \"format_version\""});
  write_bytes(engine_ / "config.json", "not json");
  refused({"config.json is not JSON"});
  fs::remove(engine_ / "config.json");
  refused({"there is no engine in", "`ostro build --output_dir"});
  fs::remove_all(engine_);
  refused({"there is no engine in"});
}

TEST_F(BrokenEngine, FilesOutsideTheDirectory) {
  change_config("rank1.safetensors", "../rank1.safetensors");
  refused({"files[1]: \"name\" is \"../rank1.safetensors\"", "must be \"rank1.safetensors\""});
}

TEST_F(BrokenEngine, RankFilesThatContradictThemselves) {
  const auto with_place = [&](const std::string& place, const std::vector<std::string>& parts) {
    const std::vector<TensorInfo> infos = {{.name = "a", .type = StoredType::f32, .shape = {3, 4}}};
    const std::vector<std::pair<std::string, std::string>> places = {{"a", place}};
    const std::string file = safetensors_header(infos, places) + std::string(48, 'x');
    expect_error<InvalidArgument>(
        [&] { engine_tensors(parse_safetensors(bytes_of(file), "r"), "r"); }, parts);
  };
  with_place("rows 0:2 of 3, cols 0:4 of 4", {"\"a\" has shape [3,4]", "rows 0:2 of 3"});
  for (const char* bad : {"", "rows 0:3 of 3", "rows 3:0 of 3, cols 0:4 of 4",
                          "rows 0:3 of 2, cols 0:4 of 4", "rows -1:2 of 3, cols 0:4 of 4",
                          "rows 0:3 of 3, cols 0:4 of 4 ", "rows 0:99999999999999999999 of 3",
                          "rows 0:3 of 9223372036854775807, cols 0:4 of 9223372036854775807"})
    with_place(bad, {"__metadata__ of tensor \"a\""});
}

TEST_F(BrokenEngine, RanksThatContradictEachOther) {
  write_engine(dir_ / "other",
               {{piece("a", 3, 4, {0, 1}, {0, 4})}, {piece("a", 3, 5, {1, 2}, {0, 5})}});
  expect_error<InvalidArgument>(
      [&] { EngineReader reader(dir_ / "other"); },
      {"rank1.safetensors: tensor \"a\" is part of a f32 [3,5]", "f32 [3,4]"});
}

TEST_F(BrokenEngine, VerifyFindsEveryByte) {
  EXPECT_NO_THROW(EngineReader(engine_).verify());
  const std::string good = read_file(engine_ / "rank1.safetensors");
  for (const std::size_t at : {std::size_t{3000}, good.size() - 1}) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ 1);
    if (at == 3000) bad[at] = '\t';  // still a space of the header
    write_bytes(engine_ / "rank1.safetensors", bad);
    expect_error<InvalidArgument>([&] { EngineReader(engine_).verify(); },
                                  {"is damaged", "the checksum of rank1.safetensors (xxh3:"});
  }
  write_bytes(engine_ / "rank1.safetensors", good);
  change_config("\"layers\": 1", "\"layers\": 2");
  expect_error<InvalidArgument>([&] { EngineReader(engine_).verify(); },
                                {"config.json of the engine", "was changed after the build"});
}

TEST_F(BrokenEngine, VerifyReportsProgress) {
  std::uint64_t last = 0, all = 0;
  EngineReader(engine_).verify([&](std::uint64_t done, std::uint64_t total) {
    EXPECT_GT(done, last);
    last = done;
    all = total;
  });
  EXPECT_EQ(last, all);
  EXPECT_EQ(all, fs::file_size(engine_ / "rank0.safetensors") +
                     fs::file_size(engine_ / "rank1.safetensors"));
}

}  // namespace
}  // namespace ostro::checkpoint
