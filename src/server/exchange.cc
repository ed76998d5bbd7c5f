#include "server/exchange.h"

#include <cstdio>
#include <ctime>

namespace ostro::server {
namespace {

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[40];
  std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return text;
}

}  // namespace

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Status";
  }
}

void Exchange::start(const HttpResponse& response, bool stream) {
  status_ = response.status;
  if (stream && !options_.chunked) options_.keep_alive = false;
  outbox_ += "HTTP/1.1 " + std::to_string(response.status) + ' ';
  outbox_ += reason_phrase(response.status);
  outbox_ += "\r\nDate: " + http_date() + "\r\nServer: ostro\r\nX-Request-Id: " + options_.id +
             "\r\nContent-Type: " + response.content_type + "\r\n";
  for (const auto& [name, value] : response.headers) outbox_ += name + ": " + value + "\r\n";
  if (!options_.keep_alive) outbox_ += "Connection: close\r\n";
  if (!stream)
    outbox_ += "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
  else if (options_.chunked)
    outbox_ += "Transfer-Encoding: chunked\r\n";
  outbox_ += "\r\n";
}

void Exchange::send(HttpResponse response) {
  if (gone_ || finished_) return;
  start(response, false);
  if (!options_.head_only) {
    outbox_ += response.body;
    body_bytes_ = response.body.size();
  }
  finish();
}

void Exchange::open_stream() {
  if (gone_ || finished_) return;
  start({.content_type = "text/event-stream; charset=utf-8",
         .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}},
        true);
  wake_();
}

void Exchange::write(std::string_view events) {
  if (gone_ || finished_ || events.empty()) return;
  if (outbox_.size() > options_.max_unsent_bytes) {  // one large event alone is no fault of it
    cut_off_ = true;
    abandon();
    wake_();
    return;
  }
  body_bytes_ += events.size();
  if (options_.chunked) {
    char size[20];
    outbox_.append(size, std::size_t(std::snprintf(size, sizeof(size), "%zx\r\n", events.size())));
  }
  outbox_ += events;
  if (options_.chunked) outbox_ += "\r\n";
  wake_();
}

void Exchange::close_stream() {
  if (gone_ || finished_) return;
  if (options_.chunked) outbox_ += "0\r\n\r\n";
  finish();
}

void Exchange::finish() {
  finished_ = true;
  gone_callback_ = nullptr;
  wake_();
}

void Exchange::when_gone(std::function<void()> gone) {
  if (!finished_ && !gone_) gone_callback_ = std::move(gone);
}

std::string Exchange::take() { return std::exchange(outbox_, {}); }

void Exchange::abandon() {
  if (gone_ || finished_) return;
  gone_ = true;
  outbox_.clear();
  if (const auto callback = std::exchange(gone_callback_, nullptr)) callback();
}

}  // namespace ostro::server
