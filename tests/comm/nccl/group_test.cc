// The calls that every transport is tested with, on the memory of two GPUs or more.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "backends/cuda/backend.h"
#include "comm/collectives.h"
#include "comm/local/run_ranks.h"
#include "comm/nccl/count_gpus.h"
#include "comm/nccl/transport.h"
#include "comm/packed.h"

namespace ostro::comm::testing {
namespace {

// Host views by way of the GPU.
class ThroughGpu final : public Communicator {
 public:
  ThroughGpu(ops::Backend& gpu, std::shared_ptr<nccl::Transport> transport,
             std::unique_ptr<Communicator> host)
      : gpu_(gpu), transport_(std::move(transport)), host_(std::move(host)) {
    if (host_->ranks() == 1) return;
    group_ = nccl::make_group(transport_, host_->split(0, host_->rank()));
    group_->connect(Traffic::collectives);
  }

  int rank() const override { return host_->rank(); }
  int ranks() const override { return host_->ranks(); }

  void all_reduce_sum(View data) override {
    if (!group_) return;
    const View there = put(data, first_);
    group_->all_reduce_sum(there);
    get(there, data);
  }

  // A part that lies in `whole` does so on the GPU, too.
  void all_gather_columns(View part, View whole) override {
    if (!group_) return copy(part, whole);
    const View all = put(whole, first_);
    const std::ptrdiff_t at = static_cast<char*>(part.data) - static_cast<char*>(whole.data);
    View mine;
    if (0 <= at && at < std::ptrdiff_t(whole.bytes())) {
      const std::int64_t first = at / std::int64_t(size_of(whole.dtype));
      mine = all.cols_of({first, first + part.cols});
    } else {
      std::vector<std::byte> packed(part.bytes() + 1);
      const View dense = matrix(packed.data(), part.dtype, part.rows, part.cols);
      copy(part, dense);
      mine = put(dense, second_);
    }
    group_->all_gather_columns(mine, all);
    get(all, whole);
  }

  void send(View data, int to) override {
    group_->send(put(data, first_), to);
    gpu_.wait();
  }
  void receive(View data, int from) override {
    const View there = put(data, first_);
    group_->receive(there, from);
    get(there, data);
  }

  void wait_for_message(int from) override { host_->wait_for_message(from); }
  void buffer_sends(int to, std::size_t bytes) override { host_->buffer_sends(to, bytes); }
  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  void barrier() override { host_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<ThroughGpu>(gpu_, transport_, host_->split(color, key));
  }

 private:
  View put(const View& data, Buffer& buffer) {
    if (buffer.bytes() < data.bytes() + 1) buffer = gpu_.allocate(data.bytes() + 1);
    const View there = buffer.view(data.dtype, data.rows, data.cols);
    gpu_.copy(data, there);
    return there;
  }
  void get(const View& there, const View& data) {
    gpu_.copy(there, data);
    gpu_.wait();
  }

  ops::Backend& gpu_;
  std::shared_ptr<nccl::Transport> transport_;
  std::unique_ptr<Communicator> host_, group_;
  Buffer first_, second_;
};

int gpus = 0;

using nccl::UsePeerMemory;

void expect_all_do(void (*body)(Communicator&)) {
  for (const UsePeerMemory use : {UsePeerMemory::never, UsePeerMemory::where_possible})
    for (int ranks = 2; ranks <= std::min(gpus, 4); ++ranks) {
      const Ending end = run_ranks(ranks, [&](World& world) {
        Communicator& host = world.communicator();
        const auto gpu = cuda::make_backend(host.rank());
        ThroughGpu group(
            *gpu,
            std::make_shared<nccl::Transport>(
                *gpu, nccl::load(), nccl::Options{.rank = host.rank(), .peer_memory = use}),
            host.split(0, host.rank()));
        body(group);
      });
      EXPECT_EQ(end.code, 0) << ranks << " ranks: " << end.message;
      EXPECT_TRUE(end.none_left);
    }
}

TEST(NcclGroup, SumsInRankOrder) { expect_all_do(sums_in_rank_order); }
TEST(NcclGroup, SumsARowAlikeInAnyMatrix) { expect_all_do(sums_a_row_alike_in_any_matrix); }
TEST(NcclGroup, GathersColumns) { expect_all_do(gathers_columns); }
TEST(NcclGroup, PassesMessagesAround) { expect_all_do(passes_messages_around); }
TEST(NcclGroup, SplitsIntoGroups) { expect_all_do(splits_into_groups); }
TEST(NcclGroup, KeepsGroupsApart) { expect_all_do(keeps_groups_apart); }

// A rank that lives but does not come: the other says what it waits for, and both end.
void expect_a_name_of_the_call(UsePeerMemory use) {
  const Ending end = run_ranks(2, [use](World& world) {
    Communicator& host = world.communicator();
    const auto gpu = cuda::make_backend(host.rank());
    const auto transport = std::make_shared<nccl::Transport>(
        *gpu, nccl::load(),
        nccl::Options{.rank = host.rank(), .stall_seconds = 2, .peer_memory = use});
    const auto group = nccl::make_group(transport, host.split(0, host.rank()));
    group->connect(Traffic::collectives);
    const Buffer memory = gpu->allocate(4096);
    const View data = memory.view(DType::f32, 1, 1024);
    if (host.rank() == 0) {
      group->all_reduce_sum(data);
      gpu->wait();
    }
    host.barrier();
  });
  EXPECT_EQ(end.code, 4);
  EXPECT_NE(end.message.find("all_reduce_sum of 4096 bytes of ranks 0, 1 (call "),
            std::string::npos)
      << end.message;
  EXPECT_NE(end.message.find(" of rank 0) has not ended after 2 s"), std::string::npos)
      << end.message;
  EXPECT_LT(end.seconds, 30);
  EXPECT_TRUE(end.none_left);
}
TEST(NcclGroup, NamesTheCallThatDoesNotEnd) { expect_a_name_of_the_call(UsePeerMemory::never); }
TEST(NcclGroup, NamesTheCallInPeerMemoryThatDoesNotEnd) {
  expect_a_name_of_the_call(UsePeerMemory::where_possible);
}

}  // namespace
}  // namespace ostro::comm::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  using namespace ostro;
  comm::testing::gpus = comm::testing::count_gpus();
  if (comm::testing::gpus < 2) {
    std::printf("skipped: this machine has %d GPU, NCCL takes two\n", comm::testing::gpus);
    return 77;
  }
  try {
    comm::nccl::load();
  } catch (const Unsupported& e) {
    std::printf("skipped: %s\n", e.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}
