// HTTP/1.1 over TCP or TLS: one thread, a coroutine a connection, limits on everything a client
// sends.
//
//   HttpServer server({.port = 8000}, [](HttpRequest request, std::shared_ptr<Reply> reply) {
//     reply->send({.body = "{}"});
//   });
//   server.stop_on_signals([](int nth) { ... });
//   server.run();  // until stop(), and the last answer is written
//
// What breaks a rule is answered in OpenAI's error shape and closed: 400 not HTTP (or HTTP where
// TLS is spoken), 408 a header or body that comes too slowly, 413 body and 431 header too large,
// 503 too many connections. The constructor throws InvalidArgument if it cannot listen.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "server/http.h"
#include "server/tls.h"

namespace ostro::server {

struct HttpOptions {
  std::string host = "127.0.0.1";  // a name or an address
  std::uint16_t port = 8000;       // 0: any that is free
  std::size_t max_connections = 4096;
  std::size_t max_header_bytes = 16 << 10;
  std::size_t max_body_bytes = 8 << 20;
  std::size_t max_unsent_bytes = 1 << 20;  // of one stream
  // A whole request, header and body each, must arrive within it; an idle connection is closed
  // after it too, without a word. A client must take what is written within write_timeout; one that
  // is unreachable for so long is gone.
  std::chrono::milliseconds read_timeout{30'000};
  std::chrono::milliseconds write_timeout{30'000};
  std::shared_ptr<Tls> tls = {};  // null: plain HTTP
};

// One answered (or abandoned) request, for the access log.
struct ExchangeRecord {
  std::string id, peer, method = {}, path = {};
  int status = 0;  // 499: the client left before there was one
  bool complete = false;
  std::size_t body_bytes = 0;
  double seconds = 0;
};

class HttpServer {
 public:
  HttpServer(const HttpOptions&, Handler, std::function<void(const ExchangeRecord&)> record);
  ~HttpServer();

  std::uint16_t port() const;
  std::size_t connections() const;  // open now; of the server's thread

  // The server's thread is the one that calls run(). It returns when stop() was called and the last
  // connection is closed.
  void run();
  // From any thread: `work` is called on the server's thread.
  void post(std::function<void()> work);
  // Of the server's thread: no new connections; idle ones close, the others after their answer.
  void stop();
  // Of the server's thread: closes every connection now.
  void close_all();

  // `arrived` is called on the server's thread for the 1st, 2nd ... SIGINT or SIGTERM.
  void stop_on_signals(std::function<void(int nth)> arrived);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ostro::server
