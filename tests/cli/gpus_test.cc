#include "cli/gpus.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace ostro::cli {
namespace {

using Gpus = std::vector<RankGpus>;

RankGpus on(const char* host, std::vector<std::string> gpus, const char* visible = "") {
  return {.host = host, .visible = visible, .gpus = std::move(gpus)};
}

template <class E, class Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing is thrown";
}

TEST(Place, TakesTheGpuOfTheLocalRankOnEachHost) {
  const Gpus ranks{on("a", {"1", "2"}), on("b", {"3", "4", "5"}), on("a", {"1", "2"}),
                   on("b", {"3", "4", "5"})};
  const int devices[] = {0, 0, 1, 1};
  for (int r = 0; r < 4; ++r) {
    const Place p = place(ranks, r, false);
    EXPECT_EQ(p.device, devices[r]) << "rank " << r;
    EXPECT_EQ(p.ranks, 1);
    EXPECT_EQ(p.problem, "");
  }
}

TEST(Place, TakesTheOnlyGpuWhereEachRankSeesAnother) {
  const Gpus ranks{on("a", {"1"}, "0"), on("a", {"2"}, "1")};
  for (int r = 0; r < 2; ++r) {
    const Place p = place(ranks, r, false);
    EXPECT_EQ(p.device, 0);
    EXPECT_EQ(p.ranks, 1);
    EXPECT_EQ(p.problem, "");
  }
}

TEST(Place, TakesNoneWhereThereIsNone) {
  const Place p = place(Gpus{on("a", {}), on("a", {})}, 1, false);
  EXPECT_EQ(p.device, -1);
  EXPECT_EQ(p.problem, "");
}

TEST(Place, SaysThatThereAreTooFew) {
  const Gpus ranks(3, on("a", {"1", "2"}));
  EXPECT_EQ(place(ranks, 0, false).device, -1);
  EXPECT_EQ(place(ranks, 0, false).problem,
            "3 ranks are on this host, which has 2 GPUs; --share_gpus lets ranks share one");
}

TEST(Place, NamesTheVariableThatLeavesTooFew) {
  const Gpus ranks(2, on("a", {"7"}, "3"));
  EXPECT_EQ(place(ranks, 1, false).problem,
            "2 ranks are on this host, where CUDA_VISIBLE_DEVICES \"3\" leaves 1 GPU to this one: "
            "unset it, since rank i of a host takes GPU i, or let ranks share one by --share_gpus");
}

TEST(Place, NamesTheRankThatSeesNone) {
  const Gpus ranks{on("a", {"7"}, "0"), on("b", {}, ""), on("a", {}, "9")};
  EXPECT_EQ(
      place(ranks, 0, false).problem,
      "rank 2 sees no GPU: CUDA_VISIBLE_DEVICES is \"9\" there; set it alike for all ranks of "
      "a host, or not at all");
}

TEST(Place, RefusesTwoRanksOnOneGpuByDifferentVariables) {
  const Gpus ranks{on("a", {"1", "2"}, "0,1"), on("a", {"2", "1"}, "1,0")};
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(place(ranks, r, false).device, -1);
    EXPECT_EQ(place(ranks, r, false).problem,
              "ranks 0 and 1 would take the same GPU of a: CUDA_VISIBLE_DEVICES is \"0,1\" and "
              "\"1,0\" there; set it alike for all ranks of a host, or not at all");
  }
}

TEST(Place, SharesGpusInTurn) {
  const Gpus ranks(3, on("a", {"1", "2"}));
  const int devices[] = {0, 1, 0}, sharing[] = {2, 1, 2};
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(place(ranks, r, true).device, devices[r]);
    EXPECT_EQ(place(ranks, r, true).ranks, sharing[r]);
  }
}

RankNccl with(const char* version) {
  return {.gpu = RankNccl::Gpu::own, .version = version, .error = "no libnccl.so.2"};
}

TEST(ChooseComm, TakesNcclWhereEveryRankHasAGpuOfItsOwn) {
  const std::vector<RankNccl> all{with("2.28.9"), with("2.28.9")};
  EXPECT_TRUE(choose_comm("auto", all).nccl);
  EXPECT_TRUE(choose_comm("nccl", all).nccl);
  EXPECT_TRUE(choose_comm("peer", all).nccl);
  EXPECT_FALSE(choose_comm("host", all).nccl);
  EXPECT_EQ(choose_comm("host", all).reason, "");
}

TEST(ChooseComm, GoesThroughTheHostWhereOneHasNoGpuOfItsOwn) {
  std::vector<RankNccl> all{with("2.28.9"), with("2.28.9")};
  all[1].gpu = RankNccl::Gpu::shared;
  EXPECT_FALSE(choose_comm("auto", all).nccl);
  EXPECT_EQ(choose_comm("auto", all).reason, "");
  EXPECT_EQ(message_of<InvalidArgument>([&] { choose_comm("nccl", all); }),
            "--comm nccl needs a GPU of its own for each rank; rank 1 shares its GPU");
  all[1].gpu = RankNccl::Gpu::none;
  EXPECT_EQ(message_of<InvalidArgument>([&] { choose_comm("nccl", all); }),
            "--comm nccl needs a GPU of its own for each rank; rank 1 runs on a CPU");
  EXPECT_EQ(message_of<InvalidArgument>([&] { choose_comm("peer", all); }),
            "--comm peer needs a GPU of its own for each rank; rank 1 runs on a CPU");
}

TEST(ChooseComm, SaysWhereNcclIsMissingOrAnother) {
  EXPECT_EQ(choose_comm("auto", std::vector{with("2.28.9"), with("")}).reason,
            "rank 1: no libnccl.so.2");
  EXPECT_EQ(message_of<Unsupported>([] {
              choose_comm("nccl", std::vector{with(""), with("")});
            }),
            "rank 0: no libnccl.so.2");
  const std::vector<RankNccl> differ{with("2.28.9"), with("2.27.3")};
  EXPECT_EQ(choose_comm("auto", differ).reason,
            "rank 1 has NCCL 2.27.3, rank 0 has 2.28.9: install the same on all hosts");
  EXPECT_EQ(message_of<InvalidArgument>([&] { choose_comm("nccl", differ); }),
            "rank 1 has NCCL 2.27.3, rank 0 has 2.28.9: install the same on all hosts");
}

TEST(ExchangeGpus, BringsWhatWasSaid) {
  const auto alone = comm::make_single();
  const RankGpus mine = on("node", {"abc", "def"}, "1,0");
  const Gpus all = exchange_gpus(*alone, mine);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].host, "node");
  EXPECT_EQ(all[0].visible, "1,0");
  EXPECT_EQ(all[0].gpus, mine.gpus);
}

TEST(ExchangeNccl, BringsWhatWasSaid) {
  const auto alone = comm::make_single();
  const std::vector<RankNccl> all = exchange_nccl(*alone, with("2.28.9"));
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].gpu, RankNccl::Gpu::own);
  EXPECT_EQ(all[0].version, "2.28.9");
  EXPECT_EQ(all[0].error, "no libnccl.so.2");
}

}  // namespace
}  // namespace ostro::cli
