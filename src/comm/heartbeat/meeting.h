// How ranks 1, 2 ... get a connection to rank 0 at the start. Rank 0 listens and writes an
// invitation that the transport carries to the others:
//
//   Meeting meeting(network, one_host);                      // rank 0
//   broadcast(meeting.invitation());
//   std::vector<Socket> sockets = meeting.gather(ranks, 20s);
//
//   Socket socket = attend(invitation, rank, 20s);           // the others
//
// The invitation holds two random tokens. Rank 0 shows the first, so that a rank which has reached
// a stranger of the same address (each host has its own 172.17.0.1) tells it nothing; the rank then
// shows the second with its number. Whoever does not is cut off. The ports are closed as soon as
// all are there.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "comm/heartbeat/socket.h"

namespace ostro::comm::heartbeat {

// More than any invitation has.
inline constexpr std::size_t kInvitationBytes = 2048;

class Meeting {
 public:
  // `network` as for addresses_of_this_host(). Ranks that are all on one host meet on its loopback.
  Meeting(const std::string& network, bool one_host);

  const std::string& invitation() const { return invitation_; }

  // The connections to ranks 1 to ranks - 1, in this order. One that has not come within the time
  // is an empty Socket.
  std::vector<Socket> gather(int ranks, std::chrono::milliseconds time);

 private:
  struct Guest {
    Socket socket;
    std::string shown;
  };
  bool admit(Guest&, std::vector<Socket>& seats) const;

  std::vector<Socket> listening_;
  std::string own_token_, their_token_;
  std::string invitation_;
};

// Throws DeviceError with every address that was tried and what came of it.
Socket attend(std::string_view invitation, int rank, std::chrono::milliseconds time);

}  // namespace ostro::comm::heartbeat
