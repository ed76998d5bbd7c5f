// Load on an OpenAI-compatible server: streamed completions, many at once, by one thread.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "loadgen/summary.h"

namespace ostro::loadgen {

// Of "http://HOST[:PORT][/PREFIX]".
struct BaseUrl {
  std::string host;
  std::string port;
  std::string prefix;  // "" or "/v2"
};

// Throws InvalidArgument for what is no URL, Unsupported for https.
BaseUrl parse_base_url(const std::string&);

struct HttpAnswer {
  int status = 0;
  std::string body;
};

// A GET of `path` below the prefix, within some seconds. `authorization` may be empty. Throws
// InvalidArgument if no server answers there.
HttpAnswer http_get(const BaseUrl&, const std::string& path, const std::string& authorization);

struct HttpLoadOptions {
  BaseUrl url;
  std::string authorization;        // the header's value; may be empty
  std::size_t max_concurrency = 0;  // requests that are open at once; 0: no limit
  double timeout_s = 0;             // of a request
  std::function<void(std::size_t ended)> progress;
};

struct HttpCall {
  std::string path;  // below the prefix
  std::string body;  // JSON with "stream": true
};

// Sends request i when arrivals[i] seconds have passed and fewer than max_concurrency are open.
// Connections are used again. A request's start is the moment before it is written (or connected);
// whatever goes wrong with it becomes its record's error. Throws InvalidArgument if the host is not
// known.
std::vector<Record> run_http_load(const HttpLoadOptions&,
                                  const std::function<HttpCall(std::size_t)>& call,
                                  std::span<const double> arrivals);

}  // namespace ostro::loadgen
