// What goes wrong with a request, in OpenAI's shape.
#pragma once

#include <stdexcept>
#include <string>

#include "server/http.h"

namespace ostro::server {

// Thrown while a request is read, caught where it is answered.
struct ApiError : std::runtime_error {
  ApiError(int status, const std::string& message, std::string param = {}, std::string code = {})
      : std::runtime_error(message),
        status(status),
        param(std::move(param)),
        code(std::move(code)) {}

  int status;
  std::string param;  // the field at fault: "messages[2].content"; empty: none
  std::string code;   // "context_length_exceeded"; empty: none
};

// {"error": {"message", "type", "param", "code"}}; the type follows from the status.
std::string error_body(const ApiError&);

// The same as a whole answer, with Retry-After for 429 and 503.
HttpResponse error_response(const ApiError&);

}  // namespace ostro::server
