#include "comm/contract.h"
#include "comm/packed.h"
#include "comm/world.h"

namespace ostro::comm {
namespace {

class Single final : public Communicator {
 public:
  int rank() const override { return 0; }
  int ranks() const override { return 1; }

  // The sum over one rank moves nothing, so it may lie on a device.
  void all_reduce_sum(View data) override {
    if (data.device == Device::cpu) check_all_reduce_sum(data);
  }
  void all_gather_columns(View part, View whole) override {
    check_all_gather_columns(part, whole, 0, 1);
    copy(part, whole);
  }
  void send(View data, int to) override { check_message("send", data, to, 0, 1); }
  void receive(View data, int from) override { check_message("receive", data, from, 0, 1); }
  void wait_for_message(int from) override { check_peer("wait_for_message", from, 0, 1); }
  void buffer_sends(int to, std::size_t) override { check_peer("buffer_sends", to, 0, 1); }
  void broadcast(std::span<std::byte>, int root) override { check_root(root, 1); }
  void barrier() override {}
  std::unique_ptr<Communicator> split(int color, int) override {
    check_color(color);
    return make_single();
  }
};

class SingleWorld final : public World {
 public:
  Communicator& communicator() override { return single_; }
  int rank_on_this_host() const override { return 0; }
  int ranks_on_this_host() const override { return 1; }
  Outcome finish(int code, std::string_view message) override {
    return {code, std::string(message)};
  }

 private:
  Single single_;
};

}  // namespace

std::unique_ptr<Communicator> make_single() { return std::make_unique<Single>(); }

std::unique_ptr<World> make_single_world() { return std::make_unique<SingleWorld>(); }

}  // namespace ostro::comm
