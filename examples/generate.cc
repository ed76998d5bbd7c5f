// Generates from several prompts at once with Ostro's C++ API and prints tokens as they come:
//
//   ostro build --model_dir models/tiny-mixtral --output_dir engines/tiny
//   generate engines/tiny 16  1,328,569,330  1,348,1902
//
// Each prompt is a list of token ids. A line is printed for each response, and one for each prompt
// when it has ended:
//
//   [1] 389
//   ...
//   [1] done: length, 16 tokens: 389,7190,...  (first after 12.3 ms)
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ostro/executor.h"

namespace {

std::vector<ostro::TokenId> parse_ids(const std::string& text) {
  std::vector<ostro::TokenId> ids;
  std::istringstream in(text);
  for (std::string id; std::getline(in, id, ',');) ids.push_back(std::stoi(id));
  return ids;
}

std::string joined(const std::vector<ostro::TokenId>& ids) {
  std::string text;
  for (ostro::TokenId id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

int generate(const std::string& engine_dir, std::int64_t max_new_tokens,
             const std::vector<std::string>& prompts) {
  ostro::Executor executor({.engine_dir = engine_dir});
  if (executor.model().dummy) std::puts("this engine has dummy weights");

  std::map<ostro::RequestId, std::vector<ostro::TokenId>> outputs;
  for (const std::string& prompt : prompts) {
    const ostro::Submission s = executor.submit({.prompt = parse_ids(prompt),
                                                 .max_new_tokens = max_new_tokens,
                                                 .end_ids = executor.model().end_ids});
    if (!s) {
      std::fprintf(stderr, "%s: %s\n", prompt.c_str(), s.message.c_str());
      return 2;
    }
    outputs[s.id];
  }

  for (std::size_t open = outputs.size(); open > 0;) {
    for (const ostro::Response& r : executor.await_responses(std::chrono::seconds(10))) {
      std::vector<ostro::TokenId>& output = outputs.at(r.id);
      output.insert(output.end(), r.tokens.begin(), r.tokens.end());
      if (!r.tokens.empty())
        std::printf("[%lld] %s\n", static_cast<long long>(r.id), joined(r.tokens).c_str());
      if (!r.is_last) continue;
      --open;
      if (r.finish == ostro::FinishReason::error) {
        std::fprintf(stderr, "%s\n", r.error.c_str());
        return 1;
      }
      std::printf("[%lld] done: %s, %zu tokens: %s  (first after %.1f ms)\n",
                  static_cast<long long>(r.id), std::string(name(r.finish)).c_str(), output.size(),
                  joined(output).c_str(), r.statistics.first_token_s * 1e3);
    }
  }
  const ostro::ExecutorStatistics s = executor.statistics();
  std::printf("%lld output tokens in %lld steps\n", static_cast<long long>(s.output_tokens),
              static_cast<long long>(s.iterations));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s ENGINE_DIR MAX_NEW_TOKENS IDS...\n", argv[0]);
    return 2;
  }
  try {
    return generate(argv[1], std::atoll(argv[2]), {argv + 3, argv + argc});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
