#include "tensor/view.h"

#include <gtest/gtest.h>

#include <vector>

namespace ostro {
namespace {

template <class F>
std::string internal_error(F&& f) {
  try {
    f();
  } catch (const InternalError& e) {
    return e.what();
  }
  return "no error";
}

class ViewOf4x6 : public ::testing::Test {
 protected:
  ViewOf4x6() {
    for (int i = 0; i < 24; ++i) data_.push_back(i);
  }
  std::vector<std::int32_t> data_;
  View view() { return matrix(data_.data(), DType::i32, 4, 6); }
};

TEST_F(ViewOf4x6, IsContiguous) {
  EXPECT_TRUE(view().contiguous());
  EXPECT_TRUE(bool(view()));
  EXPECT_FALSE(bool(View{}));
  EXPECT_EQ(view().bytes(), 96u);
  EXPECT_EQ(view().row<std::int32_t>(2)[3], 15);
  EXPECT_EQ(describe(view()), "i32 [4,6]");
}

TEST_F(ViewOf4x6, IsNarrowedToRowsAndColumns) {
  const View part = view().rows_of({1, 3}).cols_of({2, 5});
  EXPECT_EQ(describe(part), "i32 [2,3]");
  EXPECT_EQ(part.row_stride, 6);
  EXPECT_FALSE(part.contiguous());
  EXPECT_EQ(part.bytes(), 24u);
  EXPECT_EQ(part.row<std::int32_t>(0)[0], 8);
  EXPECT_EQ(part.row<std::int32_t>(1)[2], 16);
  EXPECT_TRUE(part.rows_of({1, 2}).contiguous());  // one row is
  EXPECT_EQ(view().rows_of({4, 4}).rows, 0);
  EXPECT_EQ(view().cols_of({0, 0}).cols, 0);
}

TEST_F(ViewOf4x6, IsNotNarrowedBeyondItself) {
  for (const Range r : {Range{-1, 2}, {3, 5}, {3, 2}})
    EXPECT_NE(internal_error([&] {
                view().rows_of(r);
              }).find(text("rows [", r.begin, ',', r.end, ") of 4")),
              std::string::npos);
  for (const Range c : {Range{-1, 2}, {5, 7}, {3, 2}})
    EXPECT_NE(internal_error([&] {
                view().cols_of(c);
              }).find(text("columns [", c.begin, ',', c.end, ") of 6")),
              std::string::npos);
}

TEST_F(ViewOf4x6, IsReadAsItsOwnTypeOnly) {
  EXPECT_EQ(view().as<const std::int32_t>()[23], 23);
  EXPECT_NE(internal_error([&] { view().as<float>(); }).find("view holds i32"), std::string::npos);
}

TEST(View, SameShapeIsRowsAndColumns) {
  const View a{.rows = 2, .cols = 3, .row_stride = 3};
  EXPECT_TRUE(same_shape(a, {.dtype = DType::i8, .rows = 2, .cols = 3, .row_stride = 9}));
  EXPECT_FALSE(same_shape(a, {.rows = 3, .cols = 2, .row_stride = 2}));
}

}  // namespace
}  // namespace ostro
