// An HTTP exchange as the routes see it, without a line of networking.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ostro::server {

struct HttpRequest {
  std::string method;  // "POST"; HEAD arrives as GET, its answer goes out without the body
  std::string path;    // "/v1/models", without the query
  std::string authorization;
  std::string id;  // the client's X-Request-Id if it is a plain word, else a random one
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// Where the answer to one request goes: either send(), or open_stream(), any number of write() and
// close_stream(). Of the server's thread; after the client has left all of them do nothing.
class Reply {
 public:
  virtual ~Reply() = default;

  virtual void send(HttpResponse) = 0;

  // 200 with an event stream, which is not buffered by proxies.
  virtual void open_stream() = 0;
  // Never waits. A client that leaves more than HttpOptions::max_unsent_bytes unread is cut off.
  virtual void write(std::string_view events) = 0;
  virtual void close_stream() = 0;

  // `gone` is called when the client leaves, is cut off or the server gives it up before the answer
  // is complete; at most once, and never from inside of send() or close_stream().
  virtual void when_gone(std::function<void()> gone) = 0;
};

using Handler = std::function<void(HttpRequest, std::shared_ptr<Reply>)>;

// "Not Found"
std::string_view reason_phrase(int status);

}  // namespace ostro::server
