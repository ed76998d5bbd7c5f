#include "comm/mpi/start_heartbeat.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/host.h"
#include "comm/heartbeat/meeting.h"

namespace ostro::comm::mpi {
namespace {

using namespace std::chrono_literals;
using heartbeat::Line;
using heartbeat::Peer;

// The rank that cannot reach rank 0 speaks first: it knows why.
constexpr std::chrono::milliseconds kToAttend = 10s;
constexpr std::chrono::milliseconds kToGather = 13s;

// One rank's entry, the same bytes on every version of Ostro.
struct Entry {
  std::int32_t pid;
  char host[252];
};

std::vector<Peer> exchange_names(Communicator& all) {
  Entry mine{.pid = ::getpid(), .host = {}};
  const std::string host = host_name();
  std::memcpy(mine.host, host.data(), std::min(host.size(), sizeof(mine.host) - 1));
  std::vector<Entry> entries(static_cast<std::size_t>(all.ranks()));
  constexpr std::int64_t kBytes = sizeof(Entry);
  all.all_gather_columns(matrix(&mine, DType::u8, 1, kBytes),
                         matrix(entries.data(), DType::u8, 1, kBytes * all.ranks()));
  std::vector<Peer> peers;
  for (const Entry& entry : entries)
    peers.push_back({.rank = int(peers.size()), .host = entry.host, .pid = entry.pid});
  return peers;
}

std::vector<Line> gather(heartbeat::Meeting& meeting, const std::vector<Peer>& peers) {
  std::vector<heartbeat::Socket> sockets = meeting.gather(int(peers.size()), kToGather);
  std::vector<Line> lines;
  std::string missing;
  for (std::size_t i = 0; i < sockets.size(); ++i) {
    const Peer& peer = peers[i + 1];
    if (!sockets[i]) missing += (missing.empty() ? "" : ", ") + describe(peer);
    lines.push_back({peer, std::move(sockets[i])});
  }
  if (!missing.empty())
    OSTRO_THROW(DeviceError, missing, " did not connect to rank 0 on ", peers[0].host, " within ",
                kToGather.count() / 1000, " s");
  return lines;
}

}  // namespace

std::unique_ptr<heartbeat::Heartbeat> start_heartbeat(Communicator& all, int ranks_on_this_host,
                                                      const Options& options,
                                                      heartbeat::FirstFailure& failure) {
  const std::vector<Peer> peers = exchange_names(all);
  const Peer& self = peers[static_cast<std::size_t>(all.rank())];
  char invitation[heartbeat::kInvitationBytes] = {};
  const auto invite = [&] { all.broadcast(std::as_writable_bytes(std::span(invitation)), 0); };
  std::vector<Line> lines;
  if (all.rank() == 0) {
    heartbeat::Meeting meeting(options.peer_network, ranks_on_this_host == all.ranks());
    OSTRO_CHECK(meeting.invitation().size() < sizeof(invitation), meeting.invitation().size());
    std::memcpy(invitation, meeting.invitation().data(), meeting.invitation().size());
    invite();
    lines = gather(meeting, peers);
  } else {
    invite();
    lines.push_back({peers[0], heartbeat::attend(invitation, all.rank(), kToAttend)});
  }
  all.barrier();  // rank 0 beats only when all are there
  return std::make_unique<heartbeat::Heartbeat>(
      self, std::move(lines),
      heartbeat::Options{
          .limit = std::chrono::milliseconds(std::int64_t(options.peer_timeout_seconds * 1000)),
          .log = options.log},
      failure);
}

}  // namespace ostro::comm::mpi
