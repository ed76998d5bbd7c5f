// Beam search in a request, by vLLM's names.
#pragma once

#include "server/api_request.h"
#include "server/fields.h"

namespace ostro::server {

// "use_beam_search"; the number of beams as "beam_width" or "best_of" (neither: n);
// "length_penalty" and "early_stopping". After the other fields of both routes: n of `r` is read,
// and what cannot go with beams is refused.
void read_beams(Fields&, ApiRequest& r);

}  // namespace ostro::server
