// CopyBlocks: the contract in ops/copy_blocks.h, for every backend of this build.
#include "ops/copy_blocks.h"

#include "ops/testing.h"

namespace ostro::ops {
namespace {

using namespace testing;

TEST(CopyBlocks, CopiesEveryPlaneAndNothingElse) {
  struct Shape {
    std::int64_t planes, block_rows, cols, pad;
  };
  constexpr std::int64_t kBlocks = 7;
  // Gaps between rows; rows that are no packs of 16 bytes; a block of Mixtral's 8 heads.
  for (const Shape& s : {Shape{2, 8, 16, 0}, Shape{4, 3, 7, 0}, Shape{4, 3, 7, 3},
                         Shape{1, 1, 1, 0}, Shape{6, 16, 8, 8}, Shape{2, 8 * 64, 128, 0}})
    for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8})
      for (const std::vector<std::int32_t>& copies :
           {std::vector<std::int32_t>{}, {2, 5}, {3, 0, 3, 6, 1, 2}}) {
        SCOPED_TRACE(text(name(dtype), " planes ", s.planes, " block_rows ", s.block_rows, " cols ",
                          s.cols, " pad ", s.pad, " copies ", copies.size() / 2));
        Matrix pairs = Matrix(DType::i32, std::int64_t(copies.size()) / 2, 2).integers(copies);
        const Matrix before =
            Matrix(dtype, s.planes * kBlocks * s.block_rows, s.cols, s.pad).random(1);
        Matrix want = before;
        reference(CopyBlocks{want.view(), pairs.view(), s.planes, s.block_rows});
        on_every_target(
            [&](Backend& backend) {
              Matrix kv = before;
              backend.run(CopyBlocks{kv.view(), pairs.view(), s.planes, s.block_rows});
              backend.wait();
              return std::vector<Matrix>{kv};
            },
            [&](const std::vector<Matrix>& got) {
              for (std::int64_t r = 0; r < want.rows(); ++r)
                ASSERT_EQ(got[0].row_bits(r) == want.row_bits(r), true) << "row " << r;
            });
      }
}

TEST(CopyBlocks, OfTwoPlanesOfThreeBlocks) {
  Matrix kv =
      Matrix(DType::f32, 12, 1).floats({0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121});
  Matrix copies = Matrix(DType::i32, 1, 2).integers({2, 0});
  const CopyBlocks op{kv.view(), copies.view(), 2, 2};
  EXPECT_EQ(op.blocks(), 3);
  reference(op);
  const Matrix want =
      Matrix(DType::f32, 12, 1).floats({20, 21, 10, 11, 20, 21, 120, 121, 110, 111, 120, 121});
  expect_equal(kv, want);
}

TEST(CopyBlocks, ReferenceChecksTheBlocks) {
  Matrix kv(DType::f32, 12, 1);
  const auto refuses = [&](const std::vector<std::int32_t>& pairs, const std::string& wanted) {
    Matrix copies = Matrix(DType::i32, std::int64_t(pairs.size()) / 2, 2).integers(pairs);
    expect_error<InvalidArgument>(
        [&] {
          reference(CopyBlocks{kv.view(), copies.view(), 2, 2});
        },
        wanted);
  };
  refuses({0, 3}, "CopyBlocks: copies[0,1] is 3, there are 3 blocks");
  refuses({0, 1, -1, 2}, "CopyBlocks: copies[1,0] is -1, there are 3 blocks");
  refuses({0, 1, 2, 1}, "CopyBlocks: block 1 is written twice");
  refuses({0, 1, 1, 2}, "CopyBlocks: block 1 is written and read");
}

TEST(CopyBlocks, RefusesWhatTheContractDoes) {
  Matrix kv(DType::bf16, 12, 8), copies(DType::i32, 2, 2);
  const CopyBlocks good{kv.view(), copies.view(), 2, 3};
  check(good);
  CopyBlocks op = good;
  const auto refuses = [&](const std::string& wanted) {
    expect_error<InvalidArgument>([&] { check(op); }, wanted);
    op = good;
  };
  op.planes = 5;
  refuses("CopyBlocks: kv is bf16 [12,8], wanted 5 planes of whole blocks of 3 rows");
  op.block_rows = 0;
  refuses("CopyBlocks: 2 planes of blocks of 0 rows, wanted 1 or more of each");
  op.copies.cols = 1;
  refuses("CopyBlocks: copies is i32 [2,1], wanted [2,2]");
  op.copies.dtype = DType::f32;
  refuses("CopyBlocks: copies is f32 [2,2], wanted i32");
  op.copies.device = Device::cuda;
  refuses("CopyBlocks: copies is on cuda, wanted cpu");
  op.kv.data = nullptr;
  refuses("CopyBlocks: kv is bf16 [12,8] without memory");
}

}  // namespace
}  // namespace ostro::ops
