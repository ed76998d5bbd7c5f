#include "server/exchange.h"

#include <gtest/gtest.h>

namespace ostro::server {
namespace {

class ExchangeTest : public testing::Test {
 protected:
  Exchange make(Exchange::Options options) {
    options.id = "id-1";
    return Exchange(options, [this] { ++wakes; });
  }
  static std::string body_of(const std::string& answer) {
    return answer.substr(answer.find("\r\n\r\n") + 4);
  }
  int wakes = 0;
  int gone = 0;
};

TEST_F(ExchangeTest, SendsAWholeAnswer) {
  Exchange e = make({});
  e.send({.status = 404, .body = "{}", .headers = {{"Retry-After", "1"}}});
  const std::string answer = e.take();
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 404 Not Found\r\n")) << answer;
  for (const char* line : {"X-Request-Id: id-1\r\n", "Content-Length: 2\r\n", "Retry-After: 1\r\n",
                           "Content-Type: application/json\r\n", "Date: "})
    EXPECT_NE(answer.find(line), answer.npos) << line;
  EXPECT_EQ(answer.find("Connection:"), answer.npos);
  EXPECT_EQ(body_of(answer), "{}");
  EXPECT_TRUE(e.finished());
  EXPECT_EQ(wakes, 1);
  e.send({.body = "again"});
  EXPECT_TRUE(e.empty());
}

TEST_F(ExchangeTest, HeadHasTheLengthAndNoBody) {
  Exchange e = make({.head_only = true, .keep_alive = false});
  e.send({.body = "12345"});
  const std::string answer = e.take();
  EXPECT_NE(answer.find("Content-Length: 5\r\n"), answer.npos);
  EXPECT_NE(answer.find("Connection: close\r\n"), answer.npos);
  EXPECT_EQ(body_of(answer), "");
}

TEST_F(ExchangeTest, StreamsInChunks) {
  Exchange e = make({});
  e.open_stream();
  e.write("data: 0123456789abcdef\n\n");
  e.write("");  // would end the stream as a chunk
  e.write("x");
  e.close_stream();
  EXPECT_EQ(body_of(e.take()), "18\r\ndata: 0123456789abcdef\n\n\r\n1\r\nx\r\n0\r\n\r\n");
  EXPECT_EQ(e.body_bytes(), 25u);
  EXPECT_TRUE(e.keep_alive());
}

TEST_F(ExchangeTest, AStreamOfHttp10EndsWithTheConnection) {
  Exchange e = make({.chunked = false});
  e.open_stream();
  e.write("abc");
  e.close_stream();
  const std::string answer = e.take();
  EXPECT_EQ(answer.find("chunked"), answer.npos);
  EXPECT_EQ(body_of(answer), "abc");
  EXPECT_FALSE(e.keep_alive());
}

TEST_F(ExchangeTest, CutsOffAStreamThatIsNotRead) {
  Exchange e = make({.max_unsent_bytes = 1000});
  e.when_gone([this] { ++gone; });
  e.open_stream();
  (void)e.take();
  e.write(std::string(5000, 'x'));  // alone, however large
  EXPECT_FALSE(e.cut_off());
  (void)e.take();
  e.write(std::string(800, 'x'));
  e.write(std::string(800, 'x'));
  EXPECT_FALSE(e.cut_off());
  e.write("y");
  EXPECT_TRUE(e.cut_off());
  EXPECT_EQ(gone, 1);
  EXPECT_TRUE(e.empty());
  e.write("z");
  e.close_stream();
  e.abandon();
  EXPECT_TRUE(e.empty());
  EXPECT_FALSE(e.finished());
  EXPECT_EQ(gone, 1);
}

TEST_F(ExchangeTest, TellsOnceThatTheClientHasLeft) {
  Exchange e = make({});
  e.when_gone([this] { ++gone; });
  e.abandon();
  e.abandon();
  EXPECT_EQ(gone, 1);
  e.send({.body = "late"});
  EXPECT_TRUE(e.empty());
  EXPECT_EQ(e.status(), 0);

  Exchange done = make({});
  done.when_gone([this] { ++gone; });
  done.send({});
  done.abandon();
  EXPECT_EQ(gone, 1);
}

}  // namespace
}  // namespace ostro::server
