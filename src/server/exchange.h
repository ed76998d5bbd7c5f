// The bytes of one answer on their way from a route to a connection.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "server/http.h"

namespace ostro::server {

// A Reply that formats HTTP/1.1 into an outbox, which the connection empties. `wake` is called when
// there is something to do for the connection. Of the server's thread.
class Exchange final : public Reply {
 public:
  struct Options {
    std::string id = {};  // X-Request-Id
    bool head_only = false;
    bool chunked = true;  // false for HTTP/1.0: a stream ends with the connection
    bool keep_alive = true;
    std::size_t max_unsent_bytes = 1 << 20;
  };
  Exchange(Options options, std::function<void()> wake)
      : options_(std::move(options)), wake_(std::move(wake)) {}

  void send(HttpResponse) override;
  void open_stream() override;
  void write(std::string_view events) override;
  void close_stream() override;
  void when_gone(std::function<void()> gone) override;

  // The connection's side.
  std::string take();  // what is to be written next
  bool empty() const { return outbox_.empty(); }
  bool finished() const { return finished_; }  // all of the answer is, or was, in the outbox
  bool cut_off() const { return cut_off_; }    // it fell too far behind
  bool keep_alive() const { return options_.keep_alive; }
  void abandon();  // the client has left

  int status() const { return status_; }
  std::size_t body_bytes() const { return body_bytes_; }

 private:
  void start(const HttpResponse&, bool stream);
  void finish();

  Options options_;
  std::function<void()> wake_;
  std::function<void()> gone_callback_;
  std::string outbox_;
  int status_ = 0;  // 0: no header yet
  std::size_t body_bytes_ = 0;
  bool finished_ = false;
  bool gone_ = false;
  bool cut_off_ = false;
};

}  // namespace ostro::server
