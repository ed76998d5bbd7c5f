#include "model/tactics_file.h"

#include <gtest/gtest.h>

#include "base/temp_dir.h"
#include "ops/tactical_backend.h"

namespace ostro::model {
namespace {

using ops::TacticalBackend;

ops::Tactics some() {
  ops::Tactics t;
  t.set({.weights = DType::bf16, .n = 6144, .k = 4096}, 1, 1);
  t.set({.weights = DType::bf16, .n = 6144, .k = 4096}, 64, 2);
  t.set({DType::u8, 14336, 4096, true, 8}, 8192, 2);
  t.set({.weights = DType::f8e4m3, .n = 4096, .k = 14336, .grouped_x = true}, 64, 1);
  return t;
}

class TacticsFile : public testing::Test {
 protected:
  void write(const std::string& content) { write_bytes(path(), content); }
  // With the backend that the table was made for.
  void use() {
    use_tactics(dir_.path(), backend_,
                {LogLevel::debug, [&](LogLevel level, std::string_view line) {
                   log_ += text(name(level), ": ", line, '\n');
                 }});
  }
  std::string path() const { return (dir_ / "tactics.json").string(); }

  TempDir dir_;
  TacticalBackend backend_;
  std::string log_;
};

TEST_F(TacticsFile, IsReadAsItWasWritten) {
  write_tactics(dir_.path(), backend_, some());
  const auto read = read_tactics(dir_.path());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->device, "a CPU with tactics");
  EXPECT_EQ(read->version, ostro_version());
  EXPECT_EQ(read->tactics, some());
  write_tactics(dir_.path(), backend_, {});
  EXPECT_EQ(read_tactics(dir_.path())->tactics, ops::Tactics{});
}

TEST_F(TacticsFile, IsUsedOnItsDevice) {
  use();
  EXPECT_EQ(log_, "") << "there is no file";
  write_tactics(dir_.path(), backend_, some());
  use();
  EXPECT_EQ(backend_.table, some());
  EXPECT_EQ(log_, text("info: ", path(), " is used: tiles of 3 products\n"));
}

TEST_F(TacticsFile, IsLeftAloneOnAnotherDevice) {
  write(to_text({"a GPU", std::string(ostro_version()), some()}));
  use();
  EXPECT_EQ(backend_.table, ops::Tactics{});
  EXPECT_EQ(log_,
            text("warning: ", path(), " is not used: it was measured on a GPU by Ostro ",
                 ostro_version(), "; this is a CPU with tactics, Ostro ", ostro_version(), '\n'));
}

TEST_F(TacticsFile, IsLeftAloneByAnotherVersion) {
  write(to_text({backend_.description(), "9.9.9", some()}));
  use();
  EXPECT_EQ(backend_.table, ops::Tactics{});
  EXPECT_EQ(log_, text("warning: ", path(),
                       " is not used: it was measured on a CPU with tactics by Ostro 9.9.9; this "
                       "is a CPU with tactics, Ostro ",
                       ostro_version(), '\n'));
  log_.clear();
  write(R"({"device": "a GPU", "ostro_version": "9.9.9", "what": "a later format"})");
  use();
  EXPECT_EQ(backend_.table, ops::Tactics{});
  EXPECT_NE(log_.find("measured on a GPU by Ostro 9.9.9"), std::string::npos) << log_;
}

TEST_F(TacticsFile, OfATacticThatTheBackendDoesNotHaveIsRefused) {
  ops::Tactics t;
  t.set({.n = 2, .k = 3}, 1, 7);
  write_tactics(dir_.path(), backend_, t);
  try {
    use();
    FAIL();
  } catch (const InvalidArgument& e) {
    EXPECT_EQ(std::string(e.what()),
              path() + ": no tactic 7 for bf16 [2,3]; remove the file or tune again");
  }
  EXPECT_EQ(backend_.table, ops::Tactics{});
}

std::string error_of(const std::string& content) {
  try {
    parse_tactics(content, "T");
    return "nothing";
  } catch (const InvalidArgument& e) {
    return e.what();
  }
}

std::string with(const std::string& products) {
  return text(R"({"device": "a GPU", "ostro_version": ")", ostro_version(), R"(", "products": )",
              products, '}');
}
std::string with_tiles(const std::string& tiles) {
  return with(R"([{"weights": "bf16", "n": 2, "k": 3, "experts": 0, "tiles": )" + tiles + "}]");
}

TEST(TacticsText, OfADamagedFileIsRefused) {
  EXPECT_EQ(error_of(with_tiles("[[1, 8], [2, 8]]")), "nothing");
  const std::string whole = with_tiles("[[1, 8]]");
  EXPECT_EQ(error_of(whole.substr(0, 30)), "T is not JSON: it goes wrong at byte 31 of 30");
  EXPECT_EQ(error_of("[]"), "T must be a JSON object, it is []");
  EXPECT_EQ(error_of("{}"), "T has no \"device\"");
  EXPECT_EQ(error_of(R"({"device": "a GPU"})"), "T has no \"ostro_version\"");
  EXPECT_EQ(error_of(with("7")), "T: \"products\" is 7; it must be a list");
  EXPECT_EQ(error_of(with("[7]")), "T, a product must be a JSON object, it is 7");
  EXPECT_EQ(error_of(with(R"([{"weights": "i32"}])")),
            "T, a product: \"weights\" is \"i32\"; it must be f32, f16, bf16, f8e4m3, i8 or u8 "
            "(int4)");
  EXPECT_EQ(error_of(with(R"([{"weights": "u8", "n": 0}])")),
            "T, a product: \"n\" is 0; it must be in [1, 1099511627776]");
  EXPECT_EQ(error_of(with_tiles("8")), "T, a product: \"tiles\" is 8; it must be a list of pairs");
  for (const char* pair : {"7", "[1]", "[1,8,9]", "[0,8]", "[1,0]", "[1,2147483648]", "[1.5,8]",
                           "[1,\"8\"]", "[-1,8]"})
    EXPECT_EQ(error_of(with_tiles(text('[', pair, ']'))),
              text("T, a product: \"tiles\" has ", pair,
                   "; it must be [tokens, tokens of a tile], the tokens more than 0"));
  EXPECT_EQ(error_of(with_tiles("[[2,8],[2,8]]")),
            "T, a product: \"tiles\" has [2,8]; it must be [tokens, tokens of a tile], the tokens "
            "more than 2");
}

}  // namespace
}  // namespace ostro::model
