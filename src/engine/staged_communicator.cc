#include "engine/staged_communicator.h"

namespace ostro::engine {
namespace {

class Staged final : public comm::Communicator {
 public:
  Staged(std::unique_ptr<comm::Communicator> host, ops::Backend& backend)
      : host_(std::move(host)), backend_(backend) {}

  int rank() const override { return host_->rank(); }
  int ranks() const override { return host_->ranks(); }

  void all_reduce_sum(View data) override {
    if (ranks() == 1 || data.bytes() == 0) return;
    const View there = fetch(data, first_);
    host_->all_reduce_sum(there);
    put(there, data);
  }

  void all_gather_columns(View part, View whole) override {
    if (whole.bytes() == 0) return;
    const View all = whole.device == Device::cpu ? whole : room_for(whole, second_);
    host_->all_gather_columns(fetch(part, first_), all);
    put(all, whole);
  }

  void send(View data, int to) override { host_->send(fetch(data, first_), to); }

  void receive(View data, int from) override {
    const View there = data.device == Device::cpu ? data : room_for(data, first_);
    host_->receive(there, from);
    put(there, data);
  }

  void wait_for_message(int from) override { host_->wait_for_message(from); }
  void buffer_sends(int to, std::size_t bytes) override { host_->buffer_sends(to, bytes); }
  void progress() override { host_->progress(); }
  void throw_if_failed() override { host_->throw_if_failed(); }

  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  void barrier() override { host_->barrier(); }
  std::unique_ptr<comm::Communicator> split(int color, int key) override {
    return make_staged(host_->split(color, key), backend_);
  }

 private:
  static View room_for(const View& like, Buffer& buffer) {
    if (buffer.bytes() < like.bytes()) {
      buffer = {};
      buffer = allocate_host(like.bytes() + like.bytes() / 4);
    }
    return buffer.view(like.dtype, like.rows, like.cols);
  }

  // `data` on the host, once what was enqueued has made it.
  View fetch(const View& data, Buffer& buffer) {
    if (data.device == Device::cpu || data.bytes() == 0) return data;
    const View there = room_for(data, buffer);
    backend_.copy(data, there);
    backend_.wait();
    return there;
  }

  void put(const View& there, const View& data) {
    if (data.device != Device::cpu && data.bytes() > 0) backend_.copy(there, data);
  }

  std::unique_ptr<comm::Communicator> host_;
  ops::Backend& backend_;
  Buffer first_, second_;
};

}  // namespace

std::unique_ptr<comm::Communicator> make_staged(std::unique_ptr<comm::Communicator> host,
                                                ops::Backend& backend) {
  return std::make_unique<Staged>(std::move(host), backend);
}

}  // namespace ostro::engine
