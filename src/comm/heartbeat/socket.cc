#include "comm/heartbeat/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <span>

#include "base/error.h"

namespace ostro::comm::heartbeat {
namespace {

void send_at_once(const Socket& socket) {
  const int on = 1;
  ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// The bytes of an IPv4 or IPv6 address, in network order.
std::span<const unsigned char> bytes_of(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
    return {reinterpret_cast<const unsigned char*>(&in), sizeof(in)};
  }
  const auto& in = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return {in.s6_addr, sizeof(in.s6_addr)};
}

bool number(std::string_view text, unsigned most, unsigned& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value <= most;
}

// The addresses that --peer_network may name.
class Network {
 public:
  explicit Network(const std::string& text) : text_(text) {
    const std::size_t slash = text.find('/');
    const std::string address = text.substr(0, slash);
    if (::inet_pton(AF_INET, address.c_str(), prefix_) == 1)
      bits_ = 32;
    else if (::inet_pton(AF_INET6, address.c_str(), prefix_) == 1)
      bits_ = 128;
    bytes_ = bits_ / 8;
    if (slash != text.npos)
      OSTRO_REQUIRE(bits_ > 0 && number(std::string_view(text).substr(slash + 1), bits_, bits_),
                    "the network \"", text,
                    "\" is neither an interface nor an address nor ADDRESS/BITS");
  }

  bool has(const ifaddrs& interface) const {
    if (text_.empty() || text_ == interface.ifa_name) return true;
    const auto bytes = bytes_of(interface.ifa_addr);
    if (bytes.size() != bytes_) return false;
    for (unsigned bit = 0; bit < bits_; ++bit)
      if ((bytes[bit / 8] ^ prefix_[bit / 8]) & (0x80 >> bit % 8)) return false;
    return true;
  }

 private:
  std::string text_;
  unsigned char prefix_[16] = {};
  unsigned bits_ = 0;
  std::size_t bytes_ = 0;
};

bool reaches_other_hosts(const ifaddrs& interface) {
  if (!interface.ifa_addr || !(interface.ifa_flags & IFF_UP)) return false;
  if (interface.ifa_flags & IFF_LOOPBACK) return false;
  if (interface.ifa_addr->sa_family == AF_INET) return true;
  return interface.ifa_addr->sa_family == AF_INET6 &&
         !IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(interface.ifa_addr)->sin6_addr);
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) ::close(fd_);
}

Endpoint::Endpoint(const sockaddr* address, socklen_t bytes) : bytes_(bytes) {
  std::memcpy(&storage_, address, bytes);
}

Endpoint Endpoint::parse(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  unsigned port = 0;
  if (colon != text.npos && number(text.substr(colon + 1), 65535, port)) {
    std::string address(text.substr(0, colon));
    sockaddr_in v4{.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {}, .sin_zero = {}};
    if (::inet_pton(AF_INET, address.c_str(), &v4.sin_addr) == 1)
      return {reinterpret_cast<sockaddr*>(&v4), sizeof(v4)};
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    if (address.size() > 2 && address.front() == '[' && address.back() == ']' &&
        ::inet_pton(AF_INET6, address.substr(1, address.size() - 2).c_str(), &v6.sin6_addr) == 1)
      return {reinterpret_cast<sockaddr*>(&v6), sizeof(v6)};
  }
  OSTRO_THROW(InvalidArgument, '"', text, "\" is not ADDRESS:PORT");
}

std::string Endpoint::address_text() const {
  char buffer[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(storage_.ss_family, bytes_of(data()).data(), buffer, sizeof(buffer));
  return buffer;
}

std::string Endpoint::text() const {
  const bool v6 = storage_.ss_family == AF_INET6;
  const in_port_t port = v6 ? reinterpret_cast<const sockaddr_in6&>(storage_).sin6_port
                            : reinterpret_cast<const sockaddr_in&>(storage_).sin_port;
  return ostro::text(v6 ? "[" : "", address_text(), v6 ? "]:" : ":", ntohs(port));
}

std::vector<Endpoint> addresses_of_this_host(const std::string& network) {
  const Network wanted(network);
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0)
    OSTRO_THROW(DeviceError,
                "the network interfaces of this host cannot be listed: ", system_error_text(errno));
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(first, ::freeifaddrs);
  std::vector<Endpoint> found;
  std::string all;
  for (const ifaddrs* i = first; i; i = i->ifa_next) {
    if (!reaches_other_hosts(*i)) continue;
    const Endpoint address(i->ifa_addr, i->ifa_addr->sa_family == AF_INET ? sizeof(sockaddr_in)
                                                                          : sizeof(sockaddr_in6));
    all += ostro::text(all.empty() ? "" : ", ", i->ifa_name, ' ', address.address_text());
    if (wanted.has(*i)) found.push_back(address);
  }
  OSTRO_REQUIRE(!found.empty() || network.empty(), "no interface of this host is in the network \"",
                network, "\"; it has: ", all.empty() ? "none" : all);
  return found;
}

Endpoint loopback() { return Endpoint::parse("127.0.0.1:0"); }

Socket listen_at(const Endpoint& address) {
  Socket socket(::socket(address.data()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket || ::bind(socket.fd(), address.data(), address.bytes()) != 0 ||
      ::listen(socket.fd(), SOMAXCONN) != 0)
    OSTRO_THROW(DeviceError, "listening at ", address.address_text(), ": ",
                system_error_text(errno));
  return socket;
}

Endpoint local_endpoint(const Socket& socket) {
  sockaddr_storage storage{};
  socklen_t bytes = sizeof(storage);
  ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&storage), &bytes);
  return {reinterpret_cast<sockaddr*>(&storage), bytes};
}

Socket begin_connect(const Endpoint& to) {
  Socket socket(::socket(to.data()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return {};
  send_at_once(socket);
  if (::connect(socket.fd(), to.data(), to.bytes()) != 0 && errno != EINPROGRESS) return {};
  return socket;
}

Socket accept_from(const Socket& listening) {
  Socket socket(::accept4(listening.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket) send_at_once(socket);
  return socket;
}

}  // namespace ostro::comm::heartbeat
