#include "loadgen/workload.h"

#include <cmath>

#include "base/error.h"
#include "base/json_lines.h"

namespace ostro::loadgen {

std::vector<Item> synthetic(const SyntheticOptions& options, Random& random) {
  std::uniform_int_distribution<std::int32_t> id(
      options.first_id, options.first_id + std::int32_t(options.vocab) - 1);
  std::vector<Item> items(std::size_t(options.requests));
  for (Item& item : items) {
    item.ids.resize(std::size_t(options.input.draw(random)));
    for (std::int32_t& one : item.ids) one = id(random);
    item.max_tokens = options.output.draw(random);
  }
  return items;
}

std::vector<Item> read_dataset(const std::filesystem::path& path, std::int64_t requests,
                               const LengthDistribution& output, Random& random) {
  std::vector<Item> items;
  for_each_json_line(path, [&](const JsonObject& line) {
    Item item;
    OSTRO_REQUIRE(line.has("prompt") + line.has("input_ids") + line.has("messages") == 1,
                  line.source(), " must have one of \"prompt\", \"input_ids\" and \"messages\"");
    if (line.has("prompt")) item.prompt = line.string("prompt");
    if (line.has("input_ids")) item.ids = line.token_ids("input_ids");
    if (line.has("messages")) item.messages = line.at("messages");
    OSTRO_REQUIRE(!item.prompt.empty() || !item.ids.empty() ||
                      (item.messages.is_array() && !item.messages.empty()),
                  line.source(), " has an empty prompt");
    item.max_tokens = line.integer_or("max_tokens", 0, 1, INT32_MAX);
    if (item.max_tokens == 0) item.max_tokens = output.draw(random);
    items.push_back(std::move(item));
    return requests == 0 || std::int64_t(items.size()) < requests;
  });
  OSTRO_REQUIRE(!items.empty(), path.string(), " has no request");
  const std::size_t lines = items.size();
  while (std::int64_t(items.size()) < requests) items.push_back(items[items.size() % lines]);
  return items;
}

std::vector<double> arrivals(std::size_t requests, double per_second, Random& random) {
  std::vector<double> times(requests, 0.0);
  if (std::isinf(per_second)) return times;
  std::exponential_distribution<> gap(per_second);
  for (std::size_t i = 1; i < requests; ++i) times[i] = times[i - 1] + gap(random);
  return times;
}

}  // namespace ostro::loadgen
