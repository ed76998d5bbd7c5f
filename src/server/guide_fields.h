// What a client wants its answer to look like: `response_format`, and vLLM's `guided_*`.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "ostro/executor.h"
#include "server/fields.h"

namespace ostro::server {

// At most one of them may ask for something. `body` is the text that the fields were read from: a
// schema goes to the compiler with its properties in the client's order, which is the answer's.
std::optional<Guide> read_guide(Fields&, std::string_view body);

}  // namespace ostro::server
