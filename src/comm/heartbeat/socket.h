// TCP sockets and the addresses of this host.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ostro::comm::heartbeat {

// Owns a file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();

  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// An IPv4 or IPv6 address with its port.
class Endpoint {
 public:
  Endpoint(const sockaddr* address, socklen_t bytes);

  // "10.77.0.1:4242" or "[fd00::1]:4242". Throws InvalidArgument.
  static Endpoint parse(std::string_view text);
  std::string text() const;
  std::string address_text() const;  // without the port

  const sockaddr* data() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t bytes() const { return bytes_; }

 private:
  sockaddr_storage storage_{};
  socklen_t bytes_ = 0;
};

// The addresses, with port 0, at which other hosts may reach this one: those of the interfaces that
// are up, without loopback and link-local ones. `network` narrows them to an interface ("eth0"), a
// network ("10.0.0.0/8", "fd00::/8") or an address; empty: all. Throws InvalidArgument, with what
// this host has, if none is left of a network that was asked for.
std::vector<Endpoint> addresses_of_this_host(const std::string& network);
Endpoint loopback();

// Non-blocking. Listens at a free port of the address.
Socket listen_at(const Endpoint& address);
Endpoint local_endpoint(const Socket&);
// Non-blocking: the connection is on its way. An empty Socket if it has failed already.
Socket begin_connect(const Endpoint&);
// An empty Socket if there is none.
Socket accept_from(const Socket& listening);

}  // namespace ostro::comm::heartbeat
