// ostro bench serve: load on a running server, this project's or any with OpenAI's API.
#pragma once

#include "cli/load_flags.h"

namespace ostro::cli {

struct ServeBenchFlags {
  LoadFlags load;
  std::string base_url = "http://127.0.0.1:8000";
  std::string endpoint, model, api_key;
  std::int64_t max_concurrency = 0;
  std::int64_t warm_up = 0;  // requests
  std::int64_t vocab = 1000;
  double timeout = 3600;

  void add(CLI::App& app);
};

int bench_serve(const ServeBenchFlags&);

}  // namespace ostro::cli
