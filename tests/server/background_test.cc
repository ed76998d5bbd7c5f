#include "server/background.h"

#include <gtest/gtest.h>

#include <future>
#include <vector>

namespace ostro::server {
namespace {

TEST(Background, RefusesWorkWhenAsMuchWaitsAsMay) {
  std::promise<void> begun, gate;
  std::promise<int> last;
  std::vector<int> order;
  Background background(1, 2);
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

}  // namespace
}  // namespace ostro::server
