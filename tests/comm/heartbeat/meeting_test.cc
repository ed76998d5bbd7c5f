#include "comm/heartbeat/meeting.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>
#include <future>
#include <sstream>

#include "base/error.h"

namespace ostro::comm::heartbeat {
namespace {

using namespace std::chrono_literals;

struct Invitation {
  explicit Invitation(const std::string& text) {
    std::istringstream in(text);
    in >> title >> rank0_token >> our_token >> where;
  }
  std::string text() const {
    return title + '\n' + rank0_token + '\n' + our_token + '\n' + where + '\n';
  }
  std::string title, rank0_token, our_token, where;
};

bool receives(const Socket& socket, std::string_view text) {
  for (int i = 0; i < 200; ++i) {
    char buffer[64] = {};
    const ssize_t got = ::recv(socket.fd(), buffer, sizeof(buffer), 0);
    if (got >= 0) return std::string_view(buffer, std::size_t(got)) == text;
    std::this_thread::sleep_for(5ms);
  }
  return false;
}

TEST(Meeting, EveryRankGetsItsSeat) {
  Meeting meeting("", true);
  auto seats = std::async([&] { return meeting.gather(4, 5s); });
  std::vector<std::future<Socket>> ranks;
  for (const int rank : {3, 1, 2})
    ranks.push_back(std::async(std::launch::async,
                               [&, rank] { return attend(meeting.invitation(), rank, 5s); }));
  std::vector<Socket> ends;
  for (auto& r : ranks) ends.push_back(r.get());
  const std::vector<Socket> sockets = seats.get();
  const char* names[] = {"three", "one", "two"};
  for (std::size_t i = 0; i < 3; ++i)
    ASSERT_GT(::send(ends[i].fd(), names[i], std::strlen(names[i]), 0), 0);
  EXPECT_TRUE(receives(sockets[0], "one"));
  EXPECT_TRUE(receives(sockets[1], "two"));
  EXPECT_TRUE(receives(sockets[2], "three"));
}

TEST(Meeting, RanksOfOneHostMeetOnItsLoopback) {
  EXPECT_EQ(Invitation(Meeting("", true).invitation()).where.substr(0, 10), "127.0.0.1:");
}

TEST(Meeting, WhoDoesNotKnowTheTokenGetsNoSeat) {
  Meeting meeting("", true);
  Invitation stranger(meeting.invitation());
  stranger.our_token[7] ^= 1;
  auto refused = std::async([&] {
    try {
      attend(stranger.text(), 1, 600ms);
    } catch (const DeviceError& error) {
      return std::string(error.what());
    }
    return std::string("admitted");
  });
  EXPECT_FALSE(meeting.gather(2, 1s)[0]);
  EXPECT_EQ(refused.get(), "rank 0 cannot be reached over TCP: " + stranger.where +
                               " (the connection was closed)");
}

TEST(Meeting, AStrangerAtTheAddressIsToldNothing) {
  const Socket stranger = listen_at(loopback());
  Invitation invitation(Meeting("", true).invitation());
  invitation.where = local_endpoint(stranger).text();
  auto rank = std::async([&] { EXPECT_THROW(attend(invitation.text(), 1, 600ms), DeviceError); });
  Socket guest;
  while (!guest) guest = accept_from(stranger);
  ASSERT_EQ(::send(guest.fd(), std::string(32, 'a').data(), 32, 0), 32);
  EXPECT_TRUE(receives(guest, ""));  // it hangs up
  rank.get();
}

TEST(Meeting, ASeatIsTakenOnce) {
  Meeting meeting("", true);
  auto seats = std::async([&] { return meeting.gather(3, 1s); });
  const Socket first = attend(meeting.invitation(), 1, 1s);
  EXPECT_THROW(attend(meeting.invitation(), 1, 300ms), DeviceError);
  EXPECT_THROW(attend(meeting.invitation(), 7, 300ms), DeviceError);
  const std::vector<Socket> sockets = seats.get();
  EXPECT_TRUE(sockets[0]);
  EXPECT_FALSE(sockets[1]);
}

TEST(Meeting, SilentGuestsDoNotKeepRanksOut) {
  Meeting meeting("", true);
  const Endpoint where = Endpoint::parse(Invitation(meeting.invitation()).where);
  std::vector<Socket> silent;
  for (int i = 0; i < 300; ++i) silent.push_back(begin_connect(where));
  auto rank = std::async([&] { return attend(meeting.invitation(), 1, 5s); });
  EXPECT_TRUE(meeting.gather(2, 5s)[0]);
  EXPECT_TRUE(rank.get());
}

TEST(Meeting, WhatCannotBeReachedIsNamed) {
  Invitation invitation(Meeting("", true).invitation());  // it listens no more
  try {
    attend(invitation.text(), 1, 200ms);
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_EQ(error.what(), "rank 0 cannot be reached over TCP: " + invitation.where +
                                " (Connection refused (errno 111))");
  }
  EXPECT_THROW(attend("something else", 1, 200ms), DeviceError);
}

TEST(Addresses, AreParsedAndPrinted) {
  for (const char* text : {"10.77.0.1:4242", "[fd00::1]:80"})
    EXPECT_EQ(Endpoint::parse(text).text(), text);
  for (const char* text : {"", "10.77.0.1", "10.77.0.1:", "10.77.0.1:65536", "fd00::1:80", "a:80"})
    EXPECT_THROW(Endpoint::parse(text), InvalidArgument) << text;
}

TEST(Addresses, OfANetworkThatIsNotHere) {
  for (const char* network : {"203.0.113.0/24", "203.0.113.7", "nosuch0", "2001:db8::/32"}) try {
      addresses_of_this_host(network);
      FAIL() << network;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(std::string("in the network \"") + network + "\""),
                std::string::npos)
          << error.what();
    }
  for (const char* network : {"203.0.113.0/33", "eth0/8", "10.0.0.0/x"})
    EXPECT_THROW(addresses_of_this_host(network), InvalidArgument) << network;
}

TEST(Addresses, ANetworkNarrowsThem) {
  const std::vector<Endpoint> all = addresses_of_this_host("");
  for (const Endpoint& address : all) {
    const std::string text = address.address_text();
    const std::vector<Endpoint> found = addresses_of_this_host(text);
    ASSERT_FALSE(found.empty());
    for (const Endpoint& f : found) EXPECT_EQ(f.address_text(), text);
    EXPECT_EQ(addresses_of_this_host(text.find(':') == text.npos ? "0.0.0.0/0" : "::/0").size() > 0,
              true);
  }
}

}  // namespace
}  // namespace ostro::comm::heartbeat
