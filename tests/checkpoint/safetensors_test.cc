#include "checkpoint/safetensors.h"

#include "checkpoint/files.h"

namespace ostro::checkpoint {
namespace {

using namespace ostro::testing;

SafetensorsHeader parse(const std::string& file) { return parse_safetensors(bytes_of(file), "m"); }

void refused(const std::string& file, const std::vector<std::string>& parts) {
  expect_error<InvalidArgument>([&] { parse(file); }, parts);
}

// One F32 [2] named "a" with these fields.
std::string one(const std::string& fields, const std::string& data) {
  return container("{\"a\":{" + fields + "}}", data);
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirBytes) {
  const auto h = parse(container(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},)"
      R"("a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"},)"
      R"("empty":{"dtype":"I8","shape":[0,3],"data_offsets":[12,12]}}  )",
      std::string(12, 'x')));
  ASSERT_EQ(h.tensors.size(), 3u);
  EXPECT_EQ(h.tensors[0].name, "a");
  EXPECT_EQ(h.tensors[0].type, StoredType::f32);
  EXPECT_EQ(h.tensors[1].name, "b");
  EXPECT_EQ(h.tensors[1].offset, h.tensors[0].offset + 8);
  EXPECT_EQ(h.tensors[1].shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(h.tensors[2].bytes, 0u);
  EXPECT_EQ(h.metadata.at("format"), "pt");
}

TEST(Safetensors, WrittenHeadersReadBack) {
  TempDir dir;
  write_bytes(dir / "m.safetensors",
              safetensors({{"x", {2, 3}, {1, 2, 3, 4, 5, 6}}, {"y", {1}, {7}}}));
  const SafetensorsFile file(dir / "m.safetensors");
  ASSERT_NE(file.find("y"), nullptr);
  EXPECT_EQ(file.find("x")->offset, 4096u);
  EXPECT_EQ(file.find("z"), nullptr);
  float y = 0;
  std::memcpy(&y, file.bytes(*file.find("y")).data(), 4);
  EXPECT_EQ(y, 7);
}

TEST(Safetensors, ReadsTheRealCheckpoint) {
  const SafetensorsFile file(OSTRO_SOURCE_DIR
                             "/models/tiny-mixtral/model-00001-of-00004.safetensors");
  ASSERT_NE(file.find("lm_head.weight"), nullptr);
  EXPECT_EQ(file.find("lm_head.weight")->shape, (std::vector<std::int64_t>{8192, 256}));
}

TEST(Safetensors, RefusesBadLengths) {
  refused("abc", {"m has 3 bytes", "at least 8"});
  refused(container("{}", "").replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\xff"),
          {"says that its header has 18446744073709551615 bytes", "no safetensors file"});
  refused(container("{}", "").replace(0, 1, "\x20"),
          {"says that its header has 32 bytes", "the file has only 10", "cut short"});
  const std::string whole = safetensors({{"x", {4}, {1, 2, 3, 4}}});
  refused(whole.substr(0, whole.size() - 1),
          {"tensor \"x\" ends at byte 16 of the data", "only 15", "cut short"});
  refused(whole + "x", {"has 17 bytes of data", "describes only 16"});
}

TEST(Safetensors, RefusesGitLfsPointers) {
  refused("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
          {"m is a Git LFS pointer", "`git lfs pull`"});
}

TEST(Safetensors, RefusesBadLayouts) {
  const auto two = [](const std::string& a, const std::string& b) {
    return container(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + a +
                         R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + b + "}}",
                     std::string(16, 'x'));
  };
  EXPECT_EQ(parse(two("[0,8]", "[8,16]")).tensors.size(), 2u);
  refused(two("[0,8]", "[4,12]"), {"\"b\" starts at byte 4", "overlaps \"a\", which ends at 8"});
  refused(two("[0,8]", "[9,17]"), {"\"b\" ends at byte 17", "the file has only 16"});
  refused(two("[8,16]", "[8,16]"), {"starts at byte 8", "the bytes from 0 on belong to no tensor"});
  refused(two("[8,0]", "[8,16]"), {"\"a\" has data_offsets [8,0], which run backwards"});
  refused(two("[0,4]", "[8,16]"), {"\"a\" has 4 bytes", "F32 [2] takes 8"});
  refused(two("[0,8,9]", "[8,16]"), {"\"a\" has 3 data_offsets"});
  refused(two("[0,18446744073709551615]", "[8,16]"), {"data_offsets holds 18446744073709551615"});
  refused(two("[0,9223372036854775807]", "[8,16]"), {"\"a\"", "takes 8"});
}

TEST(Safetensors, RefusesOverflowingShapes) {
  refused(one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", ""),
          {"shape [4294967296,4294967296], more elements"});
  refused(one(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])", ""),
          {"more elements"});
  refused(one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,0])", ""), {"negative number -1"});
  refused(one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,0])", ""), {"the fraction 1.5"});
}

TEST(Safetensors, RefusesBadFields) {
  refused(one(R"("dtype":"F12","shape":[2],"data_offsets":[0,8])", "12345678"),
          {"tensor \"a\" has dtype \"F12\"", "BF16"});
  refused(one(R"("shape":[2],"data_offsets":[0,8])", "12345678"), {"\"a\" has no dtype"});
  refused(one(R"("dtype":"F32","data_offsets":[0,8])", "12345678"), {"\"a\" has no shape"});
  refused(one(R"("dtype":"F32","shape":[2])", "12345678"), {"\"a\" has no data_offsets"});
  refused(one(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])", "12345678"),
          {"a.dtype", "twice"});
  refused(one(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])", "12345678"), {"a list"});
  refused(one(R"("dtype":null,"shape":[2],"data_offsets":[0,8])", "12345678"), {"null"});
  refused(container("[1]", ""), {"a list"});
  refused(container("", ""), {"stops being JSON"});
  refused(container("{\"a\":", ""), {"stops being JSON at its byte"});
  refused(container("{}{}", ""), {"stops being JSON at its byte"});
  refused(container(std::string(100000, '['), ""), {"a list"});
  refused(container("{\"\xff\":1}", ""), {"stops being JSON"});
}

TEST(Safetensors, RefusesATensorThatIsThereTwice) {
  TempDir dir;
  write_bytes(dir / "m.safetensors",
              container(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                        "xy"));
  expect_error<InvalidArgument>([&] { SafetensorsFile file(dir / "m.safetensors"); },
                                {"m.safetensors holds tensor \"a\" twice"});
}

}  // namespace
}  // namespace ostro::checkpoint
