#include "checkpoint/torch_file.h"

#include "checkpoint/files.h"
#include "checkpoint/weight_file.h"
#include "checkpoint/zip_writer.h"

namespace ostro::checkpoint {
namespace {

using namespace ostro::testing;
namespace pkl = ostro::testing::pickle;

std::vector<TensorInfo> parse(const std::string& file) {
  return parse_torch_file(bytes_of(file), "m.pth");
}

// An archive of one float storage with 6 elements.
std::string archive(const std::string& program, bool wide = false) {
  return zip({{"m/data.pkl", program},
              {"m/byteorder", "little"},
              {"m/data/0", raw<float>({1, 2, 3, 4, 5, 6})}},
             wide);
}

std::string with(const std::string& tensor) { return archive(pkl::dict({{"w", tensor}})); }

void unsupported(const std::string& file, const std::vector<std::string>& parts) {
  expect_error<Unsupported>([&] { parse(file); }, parts);
}
void invalid(const std::string& file, const std::vector<std::string>& parts) {
  expect_error<InvalidArgument>([&] { parse(file); }, parts);
}

const std::string kStorage = pkl::storage("FloatStorage", "0");

TEST(TorchFile, ReadsTensorsAndWindowsOfAStorage) {
  for (const bool wide : {false, true}) {
    const std::string file = archive(pkl::dict({{"w", pkl::tensor(kStorage, 0, {2, 3}, {3, 1})},
                                                {"v", pkl::tensor(kStorage, 4, {2}, {1})}}),
                                     wide);
    const auto tensors = parse(file);
    ASSERT_EQ(tensors.size(), 2u);
    EXPECT_EQ(tensors[0].name, "w");
    EXPECT_EQ(tensors[0].type, StoredType::f32);
    EXPECT_EQ(tensors[0].shape, (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(tensors[1].offset, tensors[0].offset + 16);
    float last = 0;
    std::memcpy(&last, file.data() + tensors[1].offset + 4, 4);
    EXPECT_EQ(last, 6);
  }
}

TEST(TorchFile, ReadsWhatPyTorchWrote) {
  const fs::path golden = OSTRO_SOURCE_DIR "/tests/golden";
  for (const char* name :
       {"mixtral_pytorch_bin/pytorch_model.bin", "mixtral_consolidated_pth/consolidated.00.pth",
        "mixtral_consolidated_merged_pth/consolidated.00.pth"})
    EXPECT_GT(open_weight_file(golden / name).tensors.size(), 10u) << name;
}

TEST(TorchFile, RefusesToRunAnything) {
  const std::string attack = pkl::global("posix", "system") + pkl::str("true") + "\x85R";
  unsupported(with(attack), {"m.pth: the pickle asks for posix.system", "refuses to run"});
  unsupported(with(pkl::global("builtins", "eval") + pkl::str("1") + "\x85R"), {"builtins.eval"});
  unsupported(with(pkl::global("torch", "load") + pkl::str("x") + "\x85R"), {"torch.load"});
  unsupported(with(pkl::str("x") + pkl::str("y") + "\x85R"), {"the pickle calls a string"});
  unsupported(with("\x8e"), {"opcode 142 at byte", "refuses to run it"});
  // STACK_GLOBAL names the module by strings that lie anywhere.
  unsupported(with(pkl::str("os") + pkl::str("system") + "\x93"), {"asks for os.system"});
  unsupported(with("}" + pkl::str("x") + "b"), {"sets attributes of a dictionary"});
  unsupported(with(pkl::global("collections", "OrderedDict") + pkl::tuple({1}) + "R"),
              {"makes an OrderedDict from something"});
}

TEST(TorchFile, RefusesWhatIsNotADictionaryOfPlainTensors) {
  unsupported(with(pkl::integer(3)), {"holds an integer as \"w\""});
  unsupported(with("}"), {"holds a dictionary as \"w\""});
  unsupported(archive("\x80\x02" + pkl::integer(1) + "."), {"holds an integer", "state_dict"});
  unsupported(with(pkl::tensor(kStorage, 0, {3, 2}, {1, 3})),
              {"shape [3,2] with strides [1,3]", ".contiguous()"});
  EXPECT_EQ(parse(with(pkl::tensor(kStorage, 0, {1, 6}, {77, 1}))).size(), 1u);
  invalid(with(pkl::tensor(kStorage, 1, {2, 3}, {3, 1})),
          {"\"w\" has shape [2,3] from element 1 on", "only 6"});
  invalid(with(pkl::tensor(kStorage, -1, {2}, {1})), {"from element -1"});
  invalid(with(pkl::tensor(kStorage, 0, {1 << 30, 1 << 30, 1 << 30}, {1, 1, 1})), {"shape"});
  invalid(with(pkl::tensor(pkl::storage("FloatStorage", "9"), 0, {1}, {1})),
          {"lacks the archive entry \"m/data/9\""});
  unsupported(with(pkl::storage("StrangeStorage", "0")), {"torch.StrangeStorage"});
  const std::string w = pkl::tensor(kStorage, 0, {2}, {1});
  invalid(archive(pkl::dict({{"w", w}, {"w", w}})), {"holds tensor \"w\" twice"});
}

TEST(TorchFile, RefusesDamagedPickles) {
  const std::string good = pkl::dict({{"w", pkl::tensor(kStorage, 0, {2, 3}, {3, 1})}});
  for (std::size_t n = 0; n < good.size(); ++n)
    EXPECT_THROW(parse(archive(good.substr(0, n))), Error) << n;
  invalid(archive("\x80\x02."), {"empty stack"});
  invalid(archive("\x80\x02h\x05."), {"recalls 5"});
  invalid(archive("\x80\x02u."), {"looks for a mark"});
  unsupported(archive("\x80\x01."), {"protocol 1"});
}

TEST(TorchFile, RefusesOtherContainers) {
  invalid("version https://git-lfs.github.com/spec/v1\n", {"Git LFS pointer", "git lfs pull"});
  unsupported("\x80\x02\x8a\x0al\xfc\x9c", {"before 1.6", "torch.save(torch.load("});
  invalid("hello", {"m.pth is not a file that torch.save wrote", "5 bytes"});
  invalid(zip({{"a.txt", "x"}}), {"without data.pkl"});
  const std::string program = pkl::dict({{"w", pkl::tensor(kStorage, 0, {1}, {1})}});
  unsupported(zip({{"m/data.pkl", program}, {"m/data/0", "1234", 8}}),
              {"\"m/data/0\" is compressed", "save it again"});
  unsupported(zip({{"m/data.pkl", program}, {"m/byteorder", "big"}}), {"big-endian"});
}

TEST(TorchFile, RefusesTruncatedArchives) {
  for (const bool wide : {false, true}) {
    const std::string whole =
        archive(pkl::dict({{"w", pkl::tensor(kStorage, 0, {2, 3}, {3, 1})}}), wide);
    for (std::size_t n = 0; n < whole.size(); ++n)
      EXPECT_THROW(parse(whole.substr(0, n)), Error) << n;
    // Each byte of the directory at its extremes: an error or a reading inside the file.
    for (std::size_t i = 0; i < whole.size(); ++i) {
      std::string damaged = whole;
      damaged[i] = '\xff';
      try {
        for (const TensorInfo& t : parse(damaged)) EXPECT_LE(t.offset + t.bytes, damaged.size());
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace
}  // namespace ostro::checkpoint
