#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace ostro {
namespace {

template <class E, class F>
E thrown(F&& f) {
  try {
    f();
  } catch (const E& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was thrown";
  return E("", std::source_location::current());
}

TEST(Error, RequireSaysTheValuesAndWhere) {
  const int rows = 3;
  const unsigned line = __LINE__ + 2;
  const InvalidArgument e = thrown<InvalidArgument>(
      [&] { OSTRO_REQUIRE(rows == 4, "x has ", rows, " rows, wanted ", 4); });
  EXPECT_STREQ(e.what(), "x has 3 rows, wanted 4");
  EXPECT_EQ(e.where().line(), line);
  EXPECT_STREQ(e.where().file_name(), "tests/base/error_test.cc") << "whatever the build folder";
}

TEST(Error, EachMacroThrowsItsKind) {
  EXPECT_STREQ(thrown<Unsupported>([] { OSTRO_SUPPORTED(false, "no fp8"); }).what(), "no fp8");
  EXPECT_STREQ(thrown<InternalError>([] { OSTRO_CHECK(1 + 1 == 3, "sum is ", 2); }).what(),
               "1 + 1 == 3: sum is 2");
  EXPECT_STREQ(thrown<DeviceError>([] { OSTRO_THROW(DeviceError, "ECC error on ", 7); }).what(),
               "ECC error on 7");
}

TEST(Error, MessagesAreMadeOnlyOnFailure) {
  int made = 0;
  const auto message = [&] { return ++made; };
  OSTRO_REQUIRE(true, message());
  OSTRO_SUPPORTED(true, message());
  OSTRO_CHECK(true, message());
  EXPECT_EQ(made, 0);
}

TEST(Error, MacrosAreOneStatement) {
  for (bool wrong : {false, true}) {
    bool reached_else = false;
    const auto run = [&] {
      if (wrong)
        OSTRO_REQUIRE(false, "wrong");
      else
        reached_else = true;
    };
    if (wrong)
      EXPECT_THROW(run(), InvalidArgument);
    else
      run();
    EXPECT_EQ(reached_else, !wrong);
  }
}

TEST(Error, NamesTheFailedSystemCall) {
  EXPECT_EQ(system_error_text(ENOSPC), "No space left on device (errno 28)");
}

}  // namespace
}  // namespace ostro
