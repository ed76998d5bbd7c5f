#include "cli/load_flags.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "base/error.h"
#include "base/file.h"

namespace ostro::cli {
namespace {

constexpr std::int64_t kDefaultPrompts = 256;
constexpr std::int64_t kMostPrompts = 10'000'000;
constexpr std::int32_t kFirstId = 3;

double parse_rate(const std::string& word) {
  double rate = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), rate);
  OSTRO_REQUIRE(error == std::errc() && end == word.data() + word.size() && rate > 0,
                "--request_rate is \"", word, "\"; it must be requests a second, or inf");
  return rate;
}

}  // namespace

void LoadFlags::add(CLI::App& app) {
  const char* group = "Requests";
  app.add_option("--num_prompts", num_prompts,
                 text("requests; default: each line of the data set, else ", kDefaultPrompts))
      ->group(group);
  app.add_option("--dataset,--dataset_path", dataset,
                 "a .jsonl file: {\"prompt\" | \"input_ids\" | \"messages\": ..., \"max_tokens\": "
                 "...} a line; default: random ids")
      ->group(group);
  app.add_option("--input_len,--random_input_len", input_len,
                 "tokens of random prompts: N, uniform:LEAST,MOST, normal:MEAN,STD or "
                 "lognormal:MEDIAN,SIGMA")
      ->capture_default_str()
      ->group(group);
  app.add_option("--output_len,--random_output_len", output_len,
                 "tokens to generate, in the same forms, where the data set does not say")
      ->capture_default_str()
      ->group(group);
  app.add_option("--request_rate", request_rate,
                 "requests a second, at random moments (Poisson); inf: all at once")
      ->capture_default_str()
      ->group(group);
  app.add_option("--temperature", temperature, "0: the likeliest token")
      ->capture_default_str()
      ->group(group);
  app.add_flag("--ignore_eos", ignore_eos,
               "generate on after an end token; always so with random prompts")
      ->group(group);
  app.add_option("--seed", seed, "of lengths, prompts and arrivals")
      ->capture_default_str()
      ->group(group);
  app.add_option("--goodput", goodput,
                 "limits in ms, such as ttft:500 tpot:50 e2el:5000: count the requests that keep "
                 "all of them")
      ->group(group);
  app.add_option("--json", json, "write the figures to this file as well; -: the standard output");
}

Load make_load(const LoadFlags& flags, std::int64_t vocab) {
  OSTRO_REQUIRE(flags.num_prompts >= 0 && flags.num_prompts <= kMostPrompts, "--num_prompts is ",
                flags.num_prompts, "; it must be from 1 to ", kMostPrompts);
  OSTRO_REQUIRE(flags.temperature >= 0 && flags.temperature <= 2, "--temperature is ",
                flags.temperature, "; it must be from 0 to 2");
  Load load;
  load.goodput = loadgen::parse_goodput(flags.goodput);
  load.per_second = parse_rate(flags.request_rate);
  const loadgen::LengthDistribution input(flags.input_len, "--input_len");
  const loadgen::LengthDistribution output(flags.output_len, "--output_len");
  loadgen::Random random(flags.seed);
  load.synthetic = flags.dataset.empty();
  if (load.synthetic) {
    OSTRO_REQUIRE(vocab > kFirstId && vocab <= INT32_MAX, "the vocabulary has ", vocab,
                  " ids; random prompts need more than ", kFirstId);
    load.items =
        loadgen::synthetic({.requests = flags.num_prompts ? flags.num_prompts : kDefaultPrompts,
                            .input = input,
                            .output = output,
                            .first_id = kFirstId,
                            .vocab = vocab - kFirstId},
                           random);
  } else {
    load.items = loadgen::read_dataset(flags.dataset, flags.num_prompts, output, random);
  }
  load.arrivals_s = loadgen::arrivals(load.items.size(), load.per_second, random);
  return load;
}

nlohmann::ordered_json finite(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

nlohmann::ordered_json to_json(const LoadFlags& flags, const Load& load) {
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  std::strftime(date, sizeof(date), "%Y%m%d-%H%M%S", ::gmtime_r(&now, &utc));
  return {{"date", date},
          {"num_prompts", load.items.size()},
          {"dataset", load.synthetic ? "random" : flags.dataset},
          {"random_input_len", flags.input_len},
          {"random_output_len", flags.output_len},
          {"request_rate", finite(load.per_second)},
          {"temperature", flags.temperature},
          {"ignore_eos", load.ignore_eos(flags)},
          {"seed", flags.seed}};
}

void write_json(const std::string& file, const nlohmann::ordered_json& object) {
  const std::string out =
      object.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n';
  if (file == "-")
    std::fwrite(out.data(), 1, out.size(), stdout);
  else
    replace_file(file, {std::as_bytes(std::span(out))});
}

}  // namespace ostro::cli
