// A generator behind an HTTP server, from the first connection to the last.
#pragma once

#include <cstdint>
#include <functional>

#include "base/log.h"
#include "server/api_request.h"
#include "server/generator.h"
#include "server/http_server.h"
#include "server/service.h"

namespace ostro::server {

// Answers requests until SIGINT or SIGTERM, then takes no more, finishes what runs and returns. A
// second signal ends the open requests with an error, a third closes their connections. Returns
// early, with an error to every client, if the generator fails: its failure() says how.
// `listening` is called with the port before the first request is taken.
void serve(const HttpOptions&, const ServiceOptions&, const ServedModel&, Generator&, const Log&,
           const std::function<void(std::uint16_t port)>& listening);

}  // namespace ostro::server
