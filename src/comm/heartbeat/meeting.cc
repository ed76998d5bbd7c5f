#include "comm/heartbeat/meeting.h"

#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <thread>

#include "base/error.h"

namespace ostro::comm::heartbeat {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::string_view kTitle = "ostro-heartbeat-1";
constexpr std::size_t kTokenBytes = 32;
constexpr std::size_t kShownBytes = kTokenBytes + 4;  // and the rank
constexpr char kAdmitted = '+';

constexpr std::size_t kMostAddresses = 16;   // of a host with a bridge for each container
constexpr std::size_t kMostStrangers = 256;  // connections that have not shown a token yet

std::string random_token() {
  unsigned char bytes[kTokenBytes / 2];
  if (::getrandom(bytes, sizeof(bytes), 0) != ssize_t(sizeof(bytes)))
    OSTRO_THROW(DeviceError, "getrandom: ", system_error_text(errno));
  std::string token;
  for (const unsigned char byte : bytes)
    for (const int digit : {byte >> 4, byte & 15}) token += "0123456789abcdef"[digit];
  return token;
}

// In a time that does not depend on where they differ.
bool same(std::string_view a, std::string_view b) {
  unsigned char difference = a.size() != b.size();
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) difference |= a[i] ^ b[i];
  return difference == 0;
}

int left_ms(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
  return int(std::max<std::int64_t>(left.count(), 0));
}

// What has arrived is added to `text`, up to `most`. False: the connection has ended.
bool read_some(const Socket& socket, std::string& text, std::size_t most) {
  char buffer[kShownBytes];
  const ssize_t got = ::recv(socket.fd(), buffer, std::min(sizeof(buffer), most - text.size()), 0);
  if (got > 0) text.append(buffer, std::size_t(got));
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

// A new connection has room for these few bytes.
bool write_all(const Socket& socket, std::string_view text) {
  return ::send(socket.fd(), text.data(), text.size(), MSG_NOSIGNAL) == ssize_t(text.size());
}

}  // namespace

Meeting::Meeting(const std::string& network, bool one_host)
    : own_token_(random_token()), their_token_(random_token()) {
  std::vector<Endpoint> addresses = addresses_of_this_host(network);
  if (one_host || addresses.empty()) addresses = {loopback()};
  if (addresses.size() > kMostAddresses)
    addresses.erase(addresses.begin() + kMostAddresses, addresses.end());
  invitation_ = text(kTitle, '\n', own_token_, '\n', their_token_, '\n');
  for (const Endpoint& address : addresses) {
    listening_.push_back(listen_at(address));
    invitation_ += local_endpoint(listening_.back()).text() + '\n';
  }
}

std::vector<Socket> Meeting::gather(int ranks, std::chrono::milliseconds time) {
  std::vector<Socket> seats(static_cast<std::size_t>(ranks - 1));
  std::vector<Guest> guests;
  const auto deadline = Clock::now() + time;
  const auto all_here = [&] {
    return std::all_of(seats.begin(), seats.end(), [](const Socket& s) { return bool(s); });
  };
  while (!all_here() && Clock::now() < deadline) {
    std::vector<pollfd> fds;
    for (const Socket& s : listening_) fds.push_back({s.fd(), POLLIN, 0});
    for (const Guest& g : guests) fds.push_back({g.socket.fd(), POLLIN, 0});
    ::poll(fds.data(), fds.size(), left_ms(deadline));
    std::vector<Guest> waiting;
    for (std::size_t i = 0; i < guests.size(); ++i)
      if (fds[listening_.size() + i].revents == 0 || admit(guests[i], seats))
        waiting.push_back(std::move(guests[i]));
    guests = std::move(waiting);
    for (std::size_t i = 0; i < listening_.size(); ++i)
      if (fds[i].revents != 0)
        if (Socket socket = accept_from(listening_[i]); socket && write_all(socket, own_token_))
          guests.push_back({std::move(socket), ""});
    if (guests.size() > kMostStrangers) guests.erase(guests.begin());
  }
  listening_.clear();
  return seats;
}

// True while more of what the guest shows is to come; else it has got a seat or is cut off.
bool Meeting::admit(Guest& guest, std::vector<Socket>& seats) const {
  const bool open = read_some(guest.socket, guest.shown, kShownBytes);
  if (guest.shown.size() < kShownBytes) return open;
  std::uint32_t rank = 0;
  std::memcpy(&rank, guest.shown.data() + kTokenBytes, sizeof(rank));
  if (!same(std::string_view(guest.shown).substr(0, kTokenBytes), their_token_)) return false;
  if (rank < 1 || rank > seats.size() || seats[rank - 1]) return false;
  if (write_all(guest.socket, {&kAdmitted, 1})) seats[rank - 1] = std::move(guest.socket);
  return false;
}

namespace {

// One way to rank 0.
struct Attempt {
  std::string where;
  Socket socket;
  std::string read = {};
  bool shown = false;
  std::string outcome = "no answer";
};

// One turn of an attempt whose socket has something. True: rank 0 has admitted this rank.
bool advance(Attempt& a, std::string_view rank0_token, const std::string& shows) {
  int error = 0;
  socklen_t bytes = sizeof(error);
  ::getsockopt(a.socket.fd(), SOL_SOCKET, SO_ERROR, &error, &bytes);
  if (error == 0 && read_some(a.socket, a.read, kTokenBytes + 1)) {
    if (a.read.size() < kTokenBytes) return false;
    if (same(std::string_view(a.read).substr(0, kTokenBytes), rank0_token)) {
      if (!a.shown) a.shown = write_all(a.socket, shows);
      return a.read.size() > kTokenBytes;
    }
    a.outcome = "somebody else answers";
  } else {
    a.outcome = error ? system_error_text(error) : "the connection was closed";
  }
  a.socket = {};
  return false;
}

}  // namespace

Socket attend(std::string_view invitation, int rank, std::chrono::milliseconds time) {
  std::istringstream lines{std::string(invitation)};
  std::string title, rank0_token, our_token, where;
  lines >> title >> rank0_token >> our_token;
  if (title != kTitle)
    OSTRO_THROW(DeviceError, "rank 0 is of another version of Ostro: it invites with \"",
                title.substr(0, 40), "\", this one knows \"", kTitle, '"');
  std::vector<Attempt> attempts;
  while (lines >> where) attempts.push_back({.where = where, .socket = {}});

  const auto number = std::uint32_t(rank);
  std::string shows = our_token;
  shows.append(reinterpret_cast<const char*>(&number), sizeof(number));
  const auto deadline = Clock::now() + time;
  while (Clock::now() < deadline) {
    std::vector<pollfd> fds;
    for (Attempt& a : attempts) {
      if (!a.socket)
        a = {.where = a.where,
             .socket = begin_connect(Endpoint::parse(a.where)),
             .outcome = a.outcome};
      fds.push_back({a.socket.fd(), POLLIN, 0});
    }
    ::poll(fds.data(), fds.size(), std::min(left_ms(deadline), 500));
    for (std::size_t i = 0; i < attempts.size(); ++i)
      if (attempts[i].socket && fds[i].revents != 0 && advance(attempts[i], rank0_token, shows))
        return std::move(attempts[i].socket);
    // What was refused is tried again: a route may need a moment. Not in a tight loop.
    if (std::any_of(attempts.begin(), attempts.end(), [](const Attempt& a) { return !a.socket; }))
      std::this_thread::sleep_for(50ms);
  }
  std::string tried;
  for (const Attempt& a : attempts)
    tried += text(tried.empty() ? "" : ", ", a.where, " (", a.outcome, ')');
  OSTRO_THROW(DeviceError, "rank 0 cannot be reached over TCP: ", tried);
}

}  // namespace ostro::comm::heartbeat
