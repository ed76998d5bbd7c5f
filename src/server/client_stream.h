// Bytes to and from a client: a TCP socket, over TLS once its handshake is done. Of http_server.cc.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <optional>
#include <utility>

#include "server/tls.h"

namespace ostro::server {

struct Tls {
  boost::asio::ssl::context context{boost::asio::ssl::context::tls_server};
};

// A stream in Asio's sense: one read and one write may be under way at a time.
class ClientStream {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using executor_type = Socket::executor_type;

  explicit ClientStream(Socket socket) : socket_(std::move(socket)) {}

  Socket& socket() { return socket_; }
  executor_type get_executor() { return socket_.get_executor(); }

  // From here on everything goes through TLS, the handshake first.
  boost::asio::ssl::stream<Socket&>& start_tls(Tls& tls) {
    return tls_.emplace(socket_, tls.context);
  }
  // Null while bytes go as they are.
  boost::asio::ssl::stream<Socket&>* tls() { return tls_ ? &*tls_ : nullptr; }

  template <class Buffers, class Token>
  auto async_read_some(const Buffers& buffers, Token&& token) {
    return tls_ ? tls_->async_read_some(buffers, std::forward<Token>(token))
                : socket_.async_read_some(buffers, std::forward<Token>(token));
  }
  template <class Buffers, class Token>
  auto async_write_some(const Buffers& buffers, Token&& token) {
    return tls_ ? tls_->async_write_some(buffers, std::forward<Token>(token))
                : socket_.async_write_some(buffers, std::forward<Token>(token));
  }

 private:
  Socket socket_;
  std::optional<boost::asio::ssl::stream<Socket&>> tls_;
};

}  // namespace ostro::server
