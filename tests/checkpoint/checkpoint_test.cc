#include "checkpoint/checkpoint.h"

#include "checkpoint/files.h"

namespace ostro::checkpoint {
namespace {

using namespace ostro::testing;

void refused(const fs::path& dir, const std::vector<std::string>& parts) {
  expect_error<InvalidArgument>([&] { Checkpoint checkpoint(dir); }, parts);
}

TEST(Checkpoint, OpensShardsThroughTheirIndex) {
  const Checkpoint c(OSTRO_SOURCE_DIR "/models/tiny-mixtral");
  EXPECT_EQ(c.format(), Checkpoint::Format::hugging_face);
  EXPECT_TRUE(c.has_weights());
  const auto parts = c.parts("model.norm.weight");
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].info->shape, (std::vector<std::int64_t>{256}));
  std::vector<std::byte> read(parts[0].info->bytes);
  parts[0].read(0, read);
  EXPECT_TRUE(std::equal(read.begin(), read.end(), parts[0].bytes().begin()));
  parts[0].release(0, read.size());
  EXPECT_TRUE(c.parts("nothing").empty());
}

TEST(Checkpoint, OpensEachFormOfOneModel) {
  const fs::path golden = OSTRO_SOURCE_DIR "/tests/golden";
  for (const char* name : {"mixtral_merged_experts", "mixtral_pytorch_bin"})
    EXPECT_EQ(Checkpoint(golden / name).format(), Checkpoint::Format::hugging_face) << name;
  for (const char* name : {"mixtral_consolidated_pth", "mixtral_consolidated_safetensors"})
    EXPECT_EQ(Checkpoint(golden / name).format(), Checkpoint::Format::meta) << name;
}

TEST(Checkpoint, ALoneConfigHasNoWeights) {
  TempDir dir;
  write_bytes(dir / "config.json", "{}");
  write_bytes(dir / "tokenizer.json", "{}");
  EXPECT_FALSE(Checkpoint(dir.path()).has_weights());
}

TEST(Checkpoint, WeightsWithoutTheirIndexAreNotDummyWeights) {
  for (const char* name : {"model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin",
                           "model.gguf", "consolidated.00.pth", "flax_model.msgpack"}) {
    TempDir dir;
    write_bytes(dir / "config.json", "{}");
    write_bytes(dir / name, "x");
    refused(dir.path(), {name, "but none of model.safetensors", "copy or download"});
  }
}

TEST(Checkpoint, RefusesWhatIsNoCheckpoint) {
  TempDir dir;
  refused(dir / "nowhere", {"there is no directory", "nowhere", "--model_dir"});
  refused(dir.path(), {"neither config.json", "nor params.json"});
  write_bytes(dir / "file", "x");
  refused(dir / "file", {"is a file"});
}

TEST(Checkpoint, NamesTheMissingShards) {
  TempDir dir;
  write_bytes(dir / "config.json", "{}");
  write_bytes(dir / "model.safetensors.index.json",
              R"({"weight_map":{"a":"m1.safetensors","b":"m2.safetensors","c":"m3.safetensors"}})");
  write_bytes(dir / "m1.safetensors", safetensors({{"a", {1}, {1}}}));
  refused(dir.path(), {"lacks m2.safetensors, m3.safetensors of the 3 files",
                       "model.safetensors.index.json lists", "copy or download what is missing"});
}

TEST(Checkpoint, RefusesAnIndexThatContradictsItsShards) {
  TempDir dir;
  write_bytes(dir / "config.json", "{}");
  const auto index = [&](const std::string& text) {
    write_bytes(dir / "model.safetensors.index.json", text);
  };
  write_bytes(dir / "m1.safetensors", safetensors({{"a", {1}, {1}}}));
  write_bytes(dir / "m2.safetensors", safetensors({{"b", {1}, {1}}}));
  index(R"({"weight_map":{"a":"m1.safetensors","c":"m2.safetensors"}})");
  refused(dir.path(), {"m2.safetensors does not hold tensor \"c\"", "different checkpoints"});
  index(R"({"weight_map":{"a":"m2.safetensors","b":"m1.safetensors"}})");
  refused(dir.path(), {"m2.safetensors does not hold tensor \"a\""});
  index(R"({"weight_map":{"a":"../m1.safetensors"}})");
  refused(dir.path(), {"\"../m1.safetensors\"", "same directory"});
  index(R"({"weight_map":{"a":3}})");
  refused(dir.path(), {"tensor \"a\" is 3"});
  index(R"({"weight_map":[]})");
  refused(dir.path(), {"\"weight_map\" is []"});
  index("{");
  refused(dir.path(), {"model.safetensors.index.json is not JSON"});
  write_bytes(dir / "m2.safetensors", safetensors({{"a", {1}, {1}}}));
  index(R"({"weight_map":{"a":"m1.safetensors","b":"m2.safetensors"}})");
  refused(dir.path(), {"m2.safetensors holds tensor \"a\", and so does m1.safetensors"});
}

TEST(Checkpoint, NamesATruncatedShardAndAGitLfsPointer) {
  TempDir dir;
  write_bytes(dir / "config.json", "{}");
  const std::string whole = safetensors({{"a", {4}, {1, 2, 3, 4}}});
  write_bytes(dir / "model.safetensors", whole.substr(0, whole.size() - 4));
  refused(dir.path(), {"model.safetensors: tensor \"a\" ends at byte 16", "cut short"});
  write_bytes(dir / "model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  refused(dir.path(), {"model.safetensors is a Git LFS pointer", "git lfs pull"});
}

TEST(Checkpoint, JoinsModelParallelFilesByName) {
  TempDir dir;
  write_bytes(dir / "params.json", "{}");
  write_bytes(dir / "consolidated.00.safetensors", safetensors({{"a", {1}, {1}}, {"x", {1}, {1}}}));
  write_bytes(dir / "consolidated.01.safetensors", safetensors({{"a", {1}, {2}}, {"y", {1}, {1}}}));
  const Checkpoint c(dir.path());
  EXPECT_EQ(c.format(), Checkpoint::Format::meta);
  ASSERT_EQ(c.parts("a").size(), 2u);
  EXPECT_EQ(c.parts("a")[1].file->map.path().filename(), "consolidated.01.safetensors");
  EXPECT_EQ(c.parts("y").size(), 1u);
  fs::rename(dir / "consolidated.01.safetensors", dir / "consolidated.02.safetensors");
  refused(dir.path(), {"consolidated.00.safetensors, consolidated.02.safetensors",
                       "not every file from consolidated.00 on"});
}

}  // namespace
}  // namespace ostro::checkpoint
