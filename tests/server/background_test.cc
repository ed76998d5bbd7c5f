#include "server/background.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <thread>
#include <vector>

namespace ostro::server {
namespace {

TEST(Background, RefusesWorkWhenAsMuchWaitsAsMay) {
  std::promise<void> begun, gate;
  std::promise<int> last;
  std::vector<int> order;
  Background background(1, 2, std::chrono::minutes(10));
  ASSERT_TRUE(background.run([&] {
    begun.set_value();
    gate.get_future().wait();
  }));
  begun.get_future().wait();
  EXPECT_TRUE(background.run([&] { order.push_back(1); }));
  EXPECT_TRUE(background.run([&] { last.set_value(int(order.size())); }));
  EXPECT_FALSE(background.run([&] { order.push_back(2); }));
  gate.set_value();
  EXPECT_EQ(last.get_future().get(), 1);
  EXPECT_EQ(order, std::vector<int>{1});
  EXPECT_TRUE(background.run([] {}));
}

TEST(Background, NobodyWaitsBehindLongWork) {
  std::promise<void> begun[2], gate;
  const std::shared_future<void> open = gate.get_future().share();
  Background background(2, 64, std::chrono::milliseconds(20));
  const auto work = [&](int i) {
    return [&begun, open, i] {
      begun[i].set_value();
      open.wait();
    };
  };
  ASSERT_TRUE(background.run(work(0)));
  begun[0].get_future().wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(21));
  EXPECT_TRUE(background.run(work(1))) << "one thread is free";
  begun[1].get_future().wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(21));
  EXPECT_FALSE(background.run([] {}));
  gate.set_value();
  while (!background.run([] {})) std::this_thread::yield();  // the test's time limit is its end
}

}  // namespace
}  // namespace ostro::server
