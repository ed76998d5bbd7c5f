#include "loadgen/http_load.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio.hpp>
#include <list>
#include <mutex>
#include <thread>

#include "base/error.h"

namespace ostro::loadgen {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

std::string chunk(const std::string& bytes) {
  char size[20];
  std::snprintf(size, sizeof(size), "%zx\r\n", bytes.size());
  return size + bytes + "\r\n";
}

std::string event(const std::string& text) {
  return "data: {\"choices\":[{\"index\":0,\"text\":\"" + text + "\"}]}\n\n";
}

const std::string kStream =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const std::string kUsage =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":4}}\n\n";
const std::string kDone = "data: [DONE]\n\n";
const std::string kLastChunk = "0\r\n\r\n";

// A server that answers by the script that the body of a request names; a thread a connection.
class Server {
 public:
  Server() : acceptor_(io_, {asio::ip::address_v4::loopback(), 0}) {
    accepting_ = std::thread([this] {
      for (;;) {
        tcp::socket socket(io_);
        boost::system::error_code error;
        acceptor_.accept(socket, error);
        if (error || closing_) return;
        ++connections;
        threads_.emplace_back([this, s = std::move(socket)]() mutable { serve(s); });
      }
    });
  }
  ~Server() {
    closing_ = true;
    boost::system::error_code ignored;
    tcp::socket last(io_);
    last.connect(acceptor_.local_endpoint(), ignored);
    accepting_.join();
    for (std::thread& t : threads_) t.join();
  }

  BaseUrl url() const {
    return parse_base_url(text("http://127.0.0.1:", acceptor_.local_endpoint().port(), "/prefix"));
  }

  std::atomic<int> connections{0}, open{0}, most_open{0};
  std::atomic<int> answers_a_connection{1000};

 private:
  void serve(tcp::socket& socket) {
    boost::system::error_code error;
    std::string bytes;
    for (int answers = 0; answers < answers_a_connection; ++answers) {
      const std::size_t head =
          asio::read_until(socket, asio::dynamic_buffer(bytes), "\r\n\r\n", error);
      if (error) return;
      const std::size_t at = bytes.find("Content-Length: ");
      const std::size_t length = at < head ? std::stoul(bytes.substr(at + 16)) : 0;
      if (bytes.size() < head + length)
        asio::read(socket, asio::dynamic_buffer(bytes),
                   asio::transfer_exactly(head + length - bytes.size()), error);
      const std::string request = bytes.substr(0, head + length);
      bytes.erase(0, head + length);
      const int now = ++open;
      for (int most = most_open; now > most && !most_open.compare_exchange_weak(most, now);) {
      }
      const bool again = answer(socket, request);
      --open;
      if (!again) return;
    }
  }

  static void send(tcp::socket& socket, const std::string& bytes) {
    boost::system::error_code ignored;
    asio::write(socket, asio::buffer(bytes), ignored);
  }

  static bool answer(tcp::socket& socket, const std::string& request) {
    const auto asks = [&](const char* what) { return request.find(what) != request.npos; };
    if (asks("GET /prefix/v1/models ")) {
      const std::string body = asks("Authorization: Bearer k") ? "models" : "no";
      send(socket, text("HTTP/1.1 200 OK\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
    } else if (!asks("POST /prefix/v1/completions ")) {
      send(socket, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    } else if (asks("secret") && !asks("Authorization: Bearer k")) {
      send(socket, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    } else if (asks("full")) {
      const std::string body = "{\"error\":{\"message\":\"the queue is full\"}}";
      send(socket, text("HTTP/1.1 429 Too Many Requests\r\nContent-Length: ", body.size(),
                        "\r\n\r\n", body));
    } else if (asks("cut")) {
      send(socket, kStream + chunk(event("a")));
      return false;
    } else if (asks("undone")) {
      send(socket, kStream + chunk(event("a")) + kLastChunk);
    } else if (asks("broken")) {
      send(socket, kStream + chunk(event("a")) +
                       chunk("data: {\"error\":{\"message\":\"it broke\"}}\n\n") + kLastChunk);
    } else if (asks("silent")) {
      std::this_thread::sleep_for(std::chrono::seconds(2));
      return false;
    } else if (asks("usage")) {
      // The pieces do not respect the events.
      const std::string all = event("") + event("ab") + event("c") + kUsage + kDone;
      send(socket, kStream);
      for (std::size_t at = 0; at < all.size(); at += 37) {
        send(socket, chunk(all.substr(at, 37)));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      send(socket, kLastChunk);
    } else {
      send(socket, kStream + chunk(event("a")));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      send(socket, chunk(event("b") + event("c")) + chunk(kDone) + kLastChunk);
    }
    return true;
  }

  asio::io_context io_;
  tcp::acceptor acceptor_;
  std::thread accepting_;
  std::list<std::thread> threads_;
  std::atomic<bool> closing_{false};
};

std::vector<Record> load(const Server& server, const std::vector<std::string>& scripts,
                         std::size_t max_concurrency = 0, double timeout = 30,
                         const std::string& authorization = "") {
  std::size_t ended = 0;
  const std::vector<double> arrivals(scripts.size(), 0.0);
  const auto records = run_http_load(
      {.url = server.url(),
       .authorization = authorization,
       .max_concurrency = max_concurrency,
       .timeout_s = timeout,
       .progress = [&](std::size_t n) { ended = n; }},
      [&](std::size_t i) {
        return HttpCall{.path = "/v1/completions", .body = '"' + scripts[i] + '"'};
      },
      arrivals);
  EXPECT_EQ(ended, scripts.size());
  return records;
}

TEST(HttpLoad, TimesEachPieceAndTakesTheUsage) {
  Server server;
  std::vector<Record> records;
  // On a busy machine the first piece may be read late: one of many tries must do.
  for (int tries = 0; tries < 100; ++tries) {
    records = load(server, {"plain", "usage"});
    ASSERT_EQ(records[0].error, "");
    ASSERT_EQ(records[0].arrived_s.size(), 3u);
    if (records[0].arrived_s[1] - records[0].arrived_s[0] >= 0.019) break;
  }
  const Record& plain = records[0];
  EXPECT_GE(plain.arrived_s[1] - plain.arrived_s[0], 0.019);
  EXPECT_GT(plain.ttft_s(), 0);
  EXPECT_EQ(plain.end_s, plain.arrived_s[2]);
  EXPECT_TRUE(plain.counted_pieces);
  EXPECT_EQ(plain.output_tokens, 3);
  const Record& usage = records[1];
  EXPECT_EQ(usage.error, "");
  EXPECT_EQ(usage.arrived_s.size(), 2u);  // an event without text is no token
  EXPECT_FALSE(usage.counted_pieces);
  EXPECT_EQ(usage.input_tokens, 5);
  EXPECT_EQ(usage.output_tokens, 4);
}

TEST(HttpLoad, EachFailureIsItsRequestsAlone) {
  Server server;
  const auto records = load(server, {"full", "cut", "undone", "broken", "plain"}, 1);
  EXPECT_EQ(records[0].error, "HTTP 429: the queue is full");
  EXPECT_TRUE(records[1].error.starts_with("the connection broke: ")) << records[1].error;
  EXPECT_EQ(records[2].error, "the stream ended without [DONE]");
  EXPECT_EQ(records[3].error, "it broke");
  EXPECT_EQ(records[4].error, "");
}

TEST(HttpLoad, GivesASilentServerUp) {
  Server server;
  const auto records = load(server, {"silent", "plain"}, 0, 0.3);
  EXPECT_EQ(records[0].error, "the answer was not complete after 0.3 s");
  EXPECT_EQ(records[1].error, "");
}

TEST(HttpLoad, KeepsItsConcurrencyAndItsConnections) {
  Server server;
  for (const Record& r : load(server, std::vector<std::string>(20, "plain"), 4))
    EXPECT_EQ(r.error, "");
  EXPECT_EQ(server.most_open, 4);
  EXPECT_EQ(server.connections, 4);
}

TEST(HttpLoad, AConnectionThatTheServerClosedIsReplaced) {
  Server server;
  server.answers_a_connection = 1;  // then it closes, without having said so
  for (const Record& r : load(server, std::vector<std::string>(5, "plain"), 1))
    EXPECT_EQ(r.error, "");
  EXPECT_EQ(server.connections, 5);
}

TEST(HttpLoad, NobodyListens) {
  BaseUrl url;
  {
    const Server server;
    url = server.url();
  }
  const std::vector<double> arrivals(2, 0.0);
  const auto records = run_http_load(
      {.url = url, .authorization = "", .timeout_s = 5, .progress = {}},
      [](std::size_t) { return HttpCall{.path = "/", .body = ""}; }, arrivals);
  for (const Record& r : records) EXPECT_EQ(r.error, "cannot connect: Connection refused");
  EXPECT_THROW(http_get(url, "/v1/models", ""), InvalidArgument);
}

TEST(HttpLoad, SendsTheKey) {
  Server server;
  EXPECT_EQ(load(server, {"secret"}, 0, 30, "Bearer k")[0].error, "");
  EXPECT_EQ(load(server, {"secret"})[0].error, "HTTP 401");
}

TEST(HttpGet, SendsTheKey) {
  Server server;
  EXPECT_EQ(http_get(server.url(), "/v1/models", "Bearer k").body, "models");
  EXPECT_EQ(http_get(server.url(), "/v1/models", "").body, "no");
  EXPECT_EQ(http_get(server.url(), "/other", "").status, 404);
}

TEST(ParseBaseUrl, TakesItsParts) {
  const auto parts = [](const std::string& url) {
    const BaseUrl b = parse_base_url(url);
    return std::vector<std::string>{b.host, b.port, b.prefix};
  };
  using Parts = std::vector<std::string>;
  EXPECT_EQ(parts("http://a.b:8000"), (Parts{"a.b", "8000", ""}));
  EXPECT_EQ(parts("http://a.b/"), (Parts{"a.b", "80", ""}));
  EXPECT_EQ(parts("http://127.0.0.1:1/x/y/"), (Parts{"127.0.0.1", "1", "/x/y"}));
  EXPECT_EQ(parts("http://[::1]:90/x"), (Parts{"::1", "90", "/x"}));
  for (const char* url : {"", "a.b:8000", "ftp://a", "http://", "http://:80",
                          "http://a:", "http://a:b", "http://[::1"})
    EXPECT_THROW(parse_base_url(url), InvalidArgument) << url;
  EXPECT_THROW(parse_base_url("https://a"), Unsupported);
}

}  // namespace
}  // namespace ostro::loadgen
