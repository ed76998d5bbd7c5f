#include "server/http_server.h"

#include <netinet/tcp.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <random>
#include <unordered_set>

#include "base/clock.h"
#include "base/error.h"
#include "server/api_error.h"
#include "server/client_stream.h"
#include "server/exchange.h"

namespace ostro::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

// In this file co_await stands alone or after `=`, and its operands have names: g++ 12 makes
// invalid code of some others (a trap where an `if` or `while` has it in its condition).
constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// What a client sends while it waits for an answer (the next request, mostly) is kept up to here.
constexpr std::size_t kMostReadAhead = 64 << 10;
// A refused client may still be sending: its bytes are read and dropped for so long, since closing
// at once would make its system throw the answer away.
constexpr std::chrono::seconds kLinger{2};

bool plain_word(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == ':';
  });
}

// A peer that is gone without a word (no power, no network) is an error on the socket once data has
// not been acknowledged for `limit`, or, while nothing is sent, no probe of three.
void notice_lost_peers(int socket, std::chrono::milliseconds limit) {
  const auto set = [&](int level, int option, int value) {
    ::setsockopt(socket, level, option, &value, sizeof(value));
  };
  const auto ms = int(std::min<std::int64_t>(limit.count(), 1 << 30));
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, ms);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, std::clamp(ms / 1000, 1, 60));
  set(IPPROTO_TCP, TCP_KEEPINTVL, std::clamp(ms / 3000, 1, 20));
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

std::string random_id() {
  static std::mt19937_64 random{std::random_device{}()};
  char text[24];
  std::snprintf(text, sizeof(text), "req-%016llx", static_cast<unsigned long long>(random()));
  return text;
}

class Connection;

// What the connections of one server share.
struct Shared {
  HttpOptions options;
  Handler handler;
  std::function<void(const ExchangeRecord&)> record;
  std::unordered_set<Connection*> open;
  bool stopping = false;
  std::function<void()> last_closed;  // once stopping: no connection is left
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared)
      : stream_(std::move(socket)), shared_(shared), clock_(stream_.get_executor()) {
    error_code ignored;
    const auto peer = stream_.socket().remote_endpoint(ignored);
    if (!ignored) peer_ = peer.address().to_string() + ':' + std::to_string(peer.port());
    stream_.socket().set_option(tcp::no_delay(true), ignored);
    notice_lost_peers(stream_.socket().native_handle(), shared_.options.write_timeout);
    shared_.open.insert(this);
  }
  ~Connection() {
    shared_.open.erase(this);
    if (shared_.stopping && shared_.open.empty()) shared_.last_closed();
  }

  bool idle() const { return between_requests_ && buffer_.size() == 0; }
  void close() {
    error_code ignored;
    stream_.socket().close(ignored);
  }

  asio::awaitable<void> serve() {
    const auto self = shared_from_this();
    bool again = true;
    if (shared_.options.tls) {
      const bool secured = co_await start_tls();
      again = secured;
    }
    if (again && shared_.open.size() > shared_.options.max_connections) {
      again = false;
      ApiError full(503, "this server has too many connections; try again later");
      co_await refuse(std::move(full));
    }
    while (again && !shared_.stopping) {
      const bool more = co_await one_request();
      again = more;
    }
    if (stream_.tls()) co_await end_tls();
    close();
  }

 private:
  using Parser = http::request_parser<http::string_body>;

  // What the socket does now fails, and late_ is true, if stop_clock() does not come within
  // `limit`.
  void start_clock(std::chrono::milliseconds limit) {
    late_ = false;
    clock_.expires_after(limit);
    clock_.async_wait([self = shared_from_this()](const error_code& stopped) {
      // A clock that was stopped or set anew may have run out just before.
      if (stopped || self->clock_.expiry() > asio::steady_timer::clock_type::now()) return;
      self->late_ = true;
      error_code ignored;
      self->stream_.socket().cancel(ignored);
    });
  }
  void stop_clock() { clock_.expires_at(asio::steady_timer::time_point::max()); }

  // False if the client does not speak TLS, or breaks off.
  asio::awaitable<bool> start_tls() {
    start_clock(shared_.options.read_timeout);
    const auto [no_hello, is_tls] = co_await beast::async_detect_ssl(stream_, buffer_, kTuple);
    if (!no_hello && !is_tls) {
      stop_clock();
      ApiError plain(400, "this port speaks HTTPS: the address begins with https://");
      co_await refuse(std::move(plain));
    }
    if (no_hello || !is_tls) co_return false;
    auto& tls = stream_.start_tls(*shared_.options.tls);
    const auto [error, used] = co_await tls.async_handshake(
        asio::ssl::stream_base::server, asio::const_buffer(buffer_.data()), kTuple);
    stop_clock();
    buffer_.consume(used);
    co_return !error;
  }

  // Tells the client that nothing was cut off.
  asio::awaitable<void> end_tls() {
    start_clock(kLinger);
    co_await stream_.tls()->async_shutdown(kTuple);
    stop_clock();
  }

  // Reads and answers a request; true if another one may follow.
  asio::awaitable<bool> one_request() {
    Parser parser;
    parser.header_limit(std::uint32_t(shared_.options.max_header_bytes));
    parser.body_limit(shared_.options.max_body_bytes);
    between_requests_ = true;
    start_clock(shared_.options.read_timeout);
    const auto [header_error, header_bytes] =
        co_await http::async_read_header(stream_, buffer_, parser, kTuple);
    stop_clock();
    const bool nothing = buffer_.size() == 0 && !parser.got_some();
    between_requests_ = false;
    if (header_error) {
      ApiError error = reading_error(header_error);
      if (!nothing) co_await refuse(std::move(error));
      co_return false;
    }
    if (beast::iequals(parser.get()[http::field::expect], "100-continue") && !parser.is_done()) {
      std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      const bool written = co_await write(std::move(go_on));
      if (!written) co_return false;
    }
    start_clock(shared_.options.read_timeout);
    const auto [body_error, body_bytes] =
        co_await http::async_read(stream_, buffer_, parser, kTuple);
    stop_clock();
    if (body_error) {
      ApiError error = reading_error(body_error);
      co_await refuse(std::move(error));
      co_return false;
    }
    http::request<http::string_body> message = parser.release();
    const bool again = co_await answer(std::move(message));
    co_return again;
  }

  ApiError reading_error(const error_code& e) const {
    const HttpOptions& o = shared_.options;
    if (late_)
      return {408, text("the request did not arrive within ", o.read_timeout.count(), " ms")};
    if (e == http::error::body_limit)
      return {413, text("the body is larger than ", o.max_body_bytes, " bytes")};
    if (e == http::error::header_limit || e == http::error::buffer_overflow)
      return {431, text("the header is larger than ", o.max_header_bytes, " bytes")};
    return {400, "this is not an HTTP request: " + e.message()};
  }

  // Answers what is no request and closes.
  asio::awaitable<void> refuse(ApiError error) {
    const Stopwatch watch;
    const std::string id = random_id();
    Exchange exchange({.id = id, .keep_alive = false}, [] {});
    exchange.send(error_response(error));
    std::string bytes = exchange.take();
    const bool complete = co_await write(std::move(bytes));
    shared_.record({.id = id,
                    .peer = peer_,
                    .status = error.status,
                    .complete = complete,
                    .body_bytes = exchange.body_bytes(),
                    .seconds = watch.seconds()});
    if (complete) co_await linger();
  }

  asio::awaitable<bool> write(std::string bytes) {
    start_clock(shared_.options.write_timeout);
    const auto [error, written] = co_await asio::async_write(stream_, asio::buffer(bytes), kTuple);
    stop_clock();
    co_return !error;
  }

  asio::awaitable<void> linger() {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    start_clock(kLinger);
    std::array<char, 4096> dropped;
    for (std::size_t total = 0; total < 64 * shared_.options.max_body_bytes;) {
      const auto [error, bytes] =
          co_await stream_.socket().async_read_some(asio::buffer(dropped), kTuple);
      if (error) break;
      total += bytes;
    }
    stop_clock();
  }

  asio::awaitable<bool> answer(http::request<http::string_body> message) {
    using namespace asio::experimental::awaitable_operators;
    const Stopwatch watch;
    const bool head = message.method() == http::verb::head;
    const std::string_view target(message.target().data(), message.target().size());
    const std::string_view wanted_id(message["X-Request-Id"].data(),
                                     message["X-Request-Id"].size());
    HttpRequest request{.method = head ? "GET" : std::string(message.method_string()),
                        .path = std::string(target.substr(0, target.find_first_of("?#"))),
                        .authorization = std::string(message[http::field::authorization]),
                        .id = plain_word(wanted_id) ? std::string(wanted_id) : random_id(),
                        .body = std::move(message.body())};
    ExchangeRecord record{.id = request.id,
                          .peer = peer_,
                          .method = std::string(message.method_string()),
                          .path = request.path};
    // Without an expiry the timer never ends: cancelling it is what wakes send_answer().
    asio::steady_timer wake(stream_.get_executor(), asio::steady_timer::time_point::max());
    const auto exchange = std::make_shared<Exchange>(
        Exchange::Options{.id = request.id,
                          .head_only = head,
                          .chunked = message.version() >= 11,
                          .keep_alive = message.keep_alive() && !shared_.stopping,
                          .max_unsent_bytes = shared_.options.max_unsent_bytes},
        [this, &wake, answering = std::weak_ptr(answering_ = std::make_shared<bool>(true))] {
          if (!answering.expired()) wake_up(wake);
        });
    exchange_ = exchange.get();
    shared_.handler(std::move(request), exchange);
    co_await (send_answer(*exchange, wake) || notice_end(*exchange));
    answering_.reset();
    exchange_ = nullptr;
    record.complete = exchange->finished() && exchange->empty() && !write_failed_;
    exchange->abandon();
    record.status = exchange->status() ? exchange->status() : 499;
    record.body_bytes = exchange->body_bytes();
    record.seconds = watch.seconds();
    shared_.record(record);
    co_return record.complete && exchange->keep_alive();
  }

  void wake_up(asio::steady_timer& wake) {
    wake.cancel();
    if (exchange_ && exchange_->cut_off()) close();  // also ends a write that waits for the client
  }

  // Writes what the exchange brings until its end, or until the client cannot take it.
  asio::awaitable<void> send_answer(Exchange& exchange, asio::steady_timer& wake) {
    while (!exchange.cut_off()) {
      std::string bytes = exchange.take();
      if (!bytes.empty()) {
        const bool written = co_await write(std::move(bytes));
        write_failed_ = !written;
        if (write_failed_) co_return;
        continue;
      }
      if (exchange.finished()) co_return;
      co_await wake.async_wait(kTuple);
    }
  }

  // Gives the exchange up when the client closes its side before the answer is complete.
  asio::awaitable<void> notice_end(Exchange& exchange) {
    while (buffer_.size() < kMostReadAhead) {
      const auto [error, bytes] = co_await stream_.async_read_some(buffer_.prepare(4096), kTuple);
      if (error && !exchange.finished()) {
        exchange.abandon();
        close();
        co_return;
      }
      if (error) break;  // it may still read
      buffer_.commit(bytes);
    }
    asio::steady_timer forever(stream_.get_executor(), asio::steady_timer::time_point::max());
    co_await forever.async_wait(kTuple);
  }

  ClientStream stream_;
  Shared& shared_;
  asio::steady_timer clock_;
  bool late_ = false;
  beast::flat_buffer buffer_;
  std::string peer_;
  Exchange* exchange_ = nullptr;
  std::shared_ptr<bool> answering_;  // while there is a wake-up timer
  bool between_requests_ = true;
  bool write_failed_ = false;
};

}  // namespace

struct HttpServer::State {
  State(const HttpOptions& options, Handler handler,
        std::function<void(const ExchangeRecord&)> record)
      : shared{.options = options,
               .handler = std::move(handler),
               .record = std::move(record),
               .open = {},
               .stopping = false,
               .last_closed = [this] { signals.cancel(); }} {
    try {
      const auto found = tcp::resolver(io).resolve(options.host, std::to_string(options.port));
      const tcp::endpoint endpoint = *found.begin();
      acceptor.open(endpoint.protocol());
      acceptor.set_option(tcp::acceptor::reuse_address(true));
      acceptor.bind(endpoint);
      acceptor.listen(4096);
    } catch (const boost::system::system_error& e) {
      OSTRO_THROW(InvalidArgument, "cannot listen on ", options.host, ':', options.port, ": ",
                  e.code().message());
    }
  }

  asio::awaitable<void> accept_all() {
    while (acceptor.is_open()) {
      auto [error, socket] = co_await acceptor.async_accept(kTuple);
      if (!acceptor.is_open()) co_return;
      if (error) {  // out of descriptors, mostly: connections that end will give some back
        pause.expires_after(std::chrono::milliseconds(50));
        co_await pause.async_wait(kTuple);
        continue;
      }
      auto connection = std::make_shared<Connection>(std::move(socket), shared);
      auto serve = connection->serve();
      asio::co_spawn(io, std::move(serve), [connection](const std::exception_ptr& failure) {
        if (failure) std::rethrow_exception(failure);
      });
    }
  }

  void await_signal(int nth) {
    signals.async_wait([this, nth](const error_code& error, int) {
      if (error) return;
      await_signal(nth + 1);
      arrived(nth);
    });
  }

  Shared shared;
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  asio::steady_timer pause{io};
  asio::signal_set signals{io};
  std::function<void(int)> arrived;
  // Keeps run() going while no connection is open; given up by stop().
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work{
      asio::make_work_guard(io)};
};

HttpServer::HttpServer(const HttpOptions& options, Handler handler,
                       std::function<void(const ExchangeRecord&)> record)
    : state_(std::make_unique<State>(options, std::move(handler), std::move(record))) {}

// Connections that are still there end with the io_context, after the signals.
HttpServer::~HttpServer() {
  state_->shared.last_closed = [] {};
}

std::uint16_t HttpServer::port() const { return state_->acceptor.local_endpoint().port(); }
std::size_t HttpServer::connections() const { return state_->shared.open.size(); }

void HttpServer::run() {
  asio::co_spawn(state_->io, state_->accept_all(), asio::detached);
  state_->io.run();
}

void HttpServer::post(std::function<void()> work) { asio::post(state_->io, std::move(work)); }

void HttpServer::stop() {
  State& s = *state_;
  s.shared.stopping = true;
  error_code ignored;
  s.acceptor.close(ignored);
  s.pause.cancel();
  for (Connection* c : s.shared.open)
    if (c->idle()) c->close();
  s.work.reset();
  if (s.shared.open.empty()) s.shared.last_closed();
}

void HttpServer::close_all() {
  for (Connection* c : state_->shared.open) c->close();
}

void HttpServer::stop_on_signals(std::function<void(int nth)> arrived) {
  state_->arrived = std::move(arrived);
  state_->signals.add(SIGINT);
  state_->signals.add(SIGTERM);
  state_->await_signal(1);
}

}  // namespace ostro::server
