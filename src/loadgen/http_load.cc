#include "loadgen/http_load.h"

#include <array>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <memory>

#include "base/clock.h"
#include "base/error.h"
#include "base/json.h"
#include "loadgen/stream_events.h"

namespace ostro::loadgen {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

// As in src/server/http_server.cc: co_await stands alone or after `=`, and its operands have names,
// for g++ 12.
constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

constexpr std::size_t kReadBytes = 4096;
constexpr std::size_t kMostErrorBytes = 64 << 10;
constexpr std::chrono::seconds kGetTimeout{30};

http::request<http::string_body> request_of(const BaseUrl& url, http::verb verb,
                                            const std::string& path,
                                            const std::string& authorization) {
  http::request<http::string_body> request(verb, url.prefix + path, 11);
  const bool v6 = url.host.find(':') != url.host.npos;
  request.set(http::field::host, (v6 ? '[' + url.host + ']' : url.host) + ':' + url.port);
  request.set(http::field::user_agent, "ostro-bench");
  if (!authorization.empty()) request.set(http::field::authorization, authorization);
  return request;
}

// OpenAI's error message, or the beginning of what came instead.
std::string refusal(unsigned status, const std::string& body) {
  constexpr std::size_t kLongest = 200;
  std::string message;
  try {
    message = parse_event(body).error;
  } catch (const InvalidArgument&) {
  }
  if (message.empty()) message = body.substr(0, kLongest);
  return text("HTTP ", status, message.empty() ? "" : ": ", message);
}

struct Connection {
  explicit Connection(asio::io_context& io) : stream(io) {}
  beast::tcp_stream stream;
  beast::flat_buffer buffer;
};

class Load {
 public:
  Load(const HttpLoadOptions& options, const std::function<HttpCall(std::size_t)>& call,
       std::span<const double> arrivals)
      : options_(options), call_(call), arrivals_(arrivals), records_(arrivals.size()) {
    try {
      endpoints_ = tcp::resolver(io_).resolve(options.url.host, options.url.port);
    } catch (const boost::system::system_error& e) {
      OSTRO_THROW(InvalidArgument, "the host ", options.url.host,
                  " is not known: ", e.code().message());
    }
  }

  std::vector<Record> run() {
    spawn(send_all());
    io_.run();
    if (failure_) std::rethrow_exception(failure_);
    return std::move(records_);
  }

 private:
  enum class End {
    reusable,  // the connection is good for another request
    closed,
    stale,  // a connection that was used before is gone without a byte of an answer
  };

  void spawn(asio::awaitable<void> work) {
    asio::co_spawn(io_, std::move(work), [this](const std::exception_ptr& failure) {
      if (!failure) return;
      failure_ = failure;
      io_.stop();
    });
  }

  asio::awaitable<void> send_all() {
    for (std::size_t i = 0; i < arrivals_.size(); ++i) {
      timer_.expires_after(std::chrono::duration_cast<std::chrono::nanoseconds>(
          std::chrono::duration<double>(arrivals_[i] - clock_.seconds())));
      co_await timer_.async_wait(kTuple);
      while (options_.max_concurrency > 0 && open_ >= options_.max_concurrency) {
        timer_.expires_at(asio::steady_timer::time_point::max());
        waits_for_slot_ = true;
        co_await timer_.async_wait(kTuple);
      }
      ++open_;
      spawn(one(i));
    }
  }

  asio::awaitable<void> one(std::size_t i) {
    const HttpCall call = call_(i);
    auto request = request_of(options_.url, http::verb::post, call.path, options_.authorization);
    request.set(http::field::content_type, "application/json");
    request.set(http::field::accept, "text/event-stream");
    request.body() = call.body;
    request.prepare_payload();

    Record& record = records_[i];
    record.start_s = clock_.seconds();
    End end = End::stale;
    std::unique_ptr<Connection> connection;
    while (end == End::stale) {
      const bool reused = !idle_.empty();
      if (reused) {
        connection = std::move(idle_.back());
        idle_.pop_back();
      } else {
        connection = std::make_unique<Connection>(io_);
      }
      set_timeout(*connection);
      if (!reused) {
        const auto [error, endpoint] =
            co_await connection->stream.async_connect(endpoints_, kTuple);
        if (error) {
          fail(record, "cannot connect: " + error.message());
          break;
        }
        error_code ignored;
        connection->stream.socket().set_option(tcp::no_delay(true), ignored);
      }
      end = co_await exchange(*connection, request, record);
      if (end == End::stale && !reused) fail(record, "the server closed the connection");
      if (!reused && end == End::stale) break;
    }
    if (end == End::reusable) idle_.push_back(std::move(connection));
    ended();
  }

  void set_timeout(Connection& connection) {
    if (options_.timeout_s > 0)
      connection.stream.expires_after(std::chrono::duration_cast<std::chrono::nanoseconds>(
          std::chrono::duration<double>(options_.timeout_s)));
    else
      connection.stream.expires_never();
  }

  void fail(Record& record, const std::string& error) {
    record.error = error;
    record.end_s = clock_.seconds();
  }

  void ended() {
    --open_;
    ++ended_;
    if (std::exchange(waits_for_slot_, false)) timer_.cancel();
    if (options_.progress) options_.progress(ended_);
  }

  asio::awaitable<End> exchange(Connection& c, http::request<http::string_body>& request,
                                Record& record) {
    const auto [write_error, written] = co_await http::async_write(c.stream, request, kTuple);
    if (write_error) co_return End::stale;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    parser.eager(true);
    const auto [header_error, header_bytes] =
        co_await http::async_read_header(c.stream, c.buffer, parser, kTuple);
    if (header_error) {
      if (header_error != beast::error::timeout && !parser.got_some()) co_return End::stale;
      fail(record, reading_error(header_error));
      co_return End::closed;
    }
    const unsigned status = parser.get().result_int();
    std::string refused;
    EventReader events;
    bool done = false;
    std::array<char, kReadBytes> bytes;
    while (!parser.is_done()) {
      parser.get().body().data = bytes.data();
      parser.get().body().size = bytes.size();
      const auto [error, read] = co_await http::async_read_some(c.stream, c.buffer, parser, kTuple);
      if (error && error != http::error::need_buffer) {
        fail(record, reading_error(error));
        co_return End::closed;
      }
      const std::string_view got(bytes.data(), bytes.size() - parser.get().body().size);
      if (status == 200) {
        events.add(got);
        done = take(events, record) || done;
      } else if (refused.size() < kMostErrorBytes) {
        refused += got;
      }
    }
    if (status != 200)
      fail(record, refusal(status, refused));
    else if (!done && record.error.empty())
      fail(record, "the stream ended without [DONE]");
    else
      complete(record);
    const bool again = parser.keep_alive();
    co_return again ? End::reusable : End::closed;
  }

  std::string reading_error(const error_code& error) const {
    if (error == beast::error::timeout)
      return text("the answer was not complete after ", options_.timeout_s, " s");
    return "the connection broke: " + error.message();
  }

  // True with [DONE].
  bool take(EventReader& events, Record& record) {
    const double now = clock_.seconds();
    bool done = false;
    try {
      while (const auto data = events.next()) {
        const StreamEvent event = parse_event(*data);
        if (event.has_text) record.arrived_s.push_back(now);
        if (event.prompt_tokens) record.input_tokens = *event.prompt_tokens;
        if (event.completion_tokens) record.output_tokens = *event.completion_tokens;
        if (!event.error.empty()) record.error = event.error;
        done |= event.is_done;
      }
    } catch (const InvalidArgument& e) {
      record.error = e.what();
    }
    return done;
  }

  void complete(Record& record) {
    if (!record.completed()) {
      record.end_s = clock_.seconds();
      return;
    }
    // An answer without a character: its end is all that can be timed.
    if (record.arrived_s.empty()) record.arrived_s.push_back(clock_.seconds());
    record.end_s = record.arrived_s.back();
    record.counted_pieces = record.output_tokens == 0;
    if (record.counted_pieces) record.output_tokens = std::int64_t(record.arrived_s.size());
  }

  const HttpLoadOptions& options_;
  const std::function<HttpCall(std::size_t)>& call_;
  const std::span<const double> arrivals_;
  std::vector<Record> records_;
  asio::io_context io_{1};
  asio::steady_timer timer_{io_};  // of send_all()
  tcp::resolver::results_type endpoints_;
  std::vector<std::unique_ptr<Connection>> idle_;
  std::size_t open_ = 0, ended_ = 0;
  bool waits_for_slot_ = false;
  std::exception_ptr failure_;
  const Stopwatch clock_;
};

}  // namespace

BaseUrl parse_base_url(const std::string& url) {
  const std::string scheme = "http://";
  OSTRO_SUPPORTED(!url.starts_with("https://"), "--base_url is ", url,
                  "; this build's client speaks http alone");
  OSTRO_REQUIRE(url.starts_with(scheme), "--base_url is \"", url,
                "\"; it must be http://HOST[:PORT][/PREFIX]");
  const std::size_t slash = std::min(url.find('/', scheme.size()), url.size());
  const std::string authority = url.substr(scheme.size(), slash - scheme.size());
  BaseUrl parts;
  parts.prefix = url.substr(slash);
  while (parts.prefix.ends_with('/')) parts.prefix.pop_back();
  // "[::1]:8000": an IPv6 address has colons of its own.
  const std::size_t bracket = authority.starts_with('[') ? authority.find(']') : 0;
  const std::size_t colon = bracket == authority.npos ? bracket : authority.find(':', bracket);
  parts.host = bracket > 0 && bracket != authority.npos ? authority.substr(1, bracket - 1)
                                                        : authority.substr(0, colon);
  parts.port = colon == authority.npos ? "80" : authority.substr(colon + 1);
  const bool digits = parts.port.find_first_not_of("0123456789") == parts.port.npos;
  const bool named = !parts.host.empty() && parts.host[0] != '[';
  OSTRO_REQUIRE(named && !parts.port.empty() && digits, "--base_url is \"", url,
                "\"; it must be http://HOST[:PORT][/PREFIX]");
  return parts;
}

HttpAnswer http_get(const BaseUrl& url, const std::string& path, const std::string& authorization) {
  asio::io_context io{1};
  beast::tcp_stream stream(io);
  beast::flat_buffer buffer;
  const auto request = request_of(url, http::verb::get, path, authorization);
  http::response<http::string_body> response;
  error_code result;
  const auto get = [&]() -> asio::awaitable<void> {
    stream.expires_after(kGetTimeout);
    tcp::resolver resolver(io);
    const auto endpoints = co_await resolver.async_resolve(url.host, url.port, asio::use_awaitable);
    co_await stream.async_connect(endpoints, asio::use_awaitable);
    co_await http::async_write(stream, request, asio::use_awaitable);
    co_await http::async_read(stream, buffer, response, asio::use_awaitable);
  };
  auto work = get();
  asio::co_spawn(io, std::move(work), [&](const std::exception_ptr& failure) {
    try {
      if (failure) std::rethrow_exception(failure);
    } catch (const boost::system::system_error& e) {
      result = e.code();
    }
  });
  io.run();
  OSTRO_REQUIRE(!result, "no server answers at http://", url.host, ':', url.port, ": ",
                result.message());
  return {int(response.result_int()), response.body()};
}

std::vector<Record> run_http_load(const HttpLoadOptions& options,
                                  const std::function<HttpCall(std::size_t)>& call,
                                  std::span<const double> arrivals) {
  return Load(options, call, arrivals).run();
}

}  // namespace ostro::loadgen
