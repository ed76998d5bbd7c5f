#include "server/api_keys.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/temp_dir.h"

namespace ostro::server {
namespace {

TEST(ApiKeys, FindsTheKeyOfABearerHeader) {
  const ApiKeys keys({"alpha", "beta"});
  EXPECT_TRUE(keys.required());
  EXPECT_EQ(keys.find("Bearer alpha"), 0u);
  EXPECT_EQ(keys.find("bearer beta"), 1u);
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer alph", "Bearer alphaa", "Bearer ALPHA",
                            "Bearer  alpha", "alpha", "Basic alpha", "Bearer alphaalpha"})
    EXPECT_FALSE(keys.find(wrong)) << wrong;
}

TEST(ApiKeys, NoneAreRequiredWithoutKeys) {
  EXPECT_FALSE(ApiKeys().required());
  EXPECT_FALSE(ApiKeys().find("Bearer "));
}

TEST(ApiKeys, RefusesKeysThatNoHeaderCanHold) {
  for (const char* bad : {"", "a b", "a\n", "\xc3\xa9"})
    EXPECT_THROW(ApiKeys({"fine", bad}), InvalidArgument) << bad;
}

TEST(ApiKeys, ReadsAFile) {
  const TempDir dir;
  const auto path = dir / "keys";
  write_bytes(path, "# comment\r\n\r\none\r\ntwo  \n");
  EXPECT_EQ(read_key_file(path), (std::vector<std::string>{"one", "two"}));
  write_bytes(path, "# nothing\n");
  EXPECT_THROW(read_key_file(path), InvalidArgument);
  std::filesystem::remove(path);
  EXPECT_THROW(read_key_file(path), InvalidArgument);
}

}  // namespace
}  // namespace ostro::server
