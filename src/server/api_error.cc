#include "server/api_error.h"

#include <nlohmann/json.hpp>

namespace ostro::server {
namespace {

const char* type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 408:
    case 504:
      return "timeout_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

nlohmann::ordered_json text_or_null(const std::string& text) {
  if (text.empty()) return nullptr;
  return text;
}

}  // namespace

std::string error_body(const ApiError& e) {
  const nlohmann::ordered_json body = {{"error",
                                        {{"message", e.what()},
                                         {"type", type_of(e.status)},
                                         {"param", text_or_null(e.param)},
                                         {"code", text_or_null(e.code)}}}};
  // A message may quote what a client sent, which need not be UTF-8.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

HttpResponse error_response(const ApiError& e) {
  HttpResponse response{.status = e.status, .body = error_body(e)};
  if (e.status == 429 || e.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (e.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace ostro::server
