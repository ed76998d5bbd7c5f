// ostro run: prompts in, generated text or ids out, as the seed's run.py prints them.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <iostream>
#include <map>
#include <optional>

#include "base/clock.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/guide_flags.h"
#include "cli/npy.h"
#include "cli/prompts.h"
#include "cli/runtime.h"
#include "engine/engine.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace ostro::cli {
namespace {

struct RunFlags {
  RuntimeFlags runtime;
  PromptFlags prompts;
  std::int64_t max_output_len = 0;
  engine::Sampling sampling;
  std::int64_t end_id = -2;  // -2: the model's
  std::vector<std::string> stop_words;
  bool streaming = false;
  std::int64_t streaming_interval = 1;
  std::string output_csv, output_npy, logits_npy, context_logits_npy, log_probs_npy,
      cum_log_probs_npy;
  bool profiling = false;
  bool block_reuse = true, chunked_context = false;
  std::optional<std::int64_t> num_return_sequences;
  std::vector<std::string> bad_words;
  GuideFlags guide;

  std::int32_t num_beams = 1;
  std::int64_t early_stopping = 1;  // as TensorRT-LLM counts: 0 no, 1 yes, else never
  double length_penalty = 1, diversity_rate = 0;

  void add(CLI::App& app);
  // Throws InvalidArgument for what does not go together.
  engine::Beams beams() const;
  std::int64_t sequences_each() const { return num_return_sequences.value_or(num_beams); }
};

void RunFlags::add(CLI::App& app) {
  runtime.add(app);
  app.add_option("--tokenizer_dir", prompts.tokenizer_dir,
                 "directory with tokenizer.json or tokenizer.model; needed for text in or out");
  app.add_option("--max_output_len", max_output_len, "tokens to generate at most")->required();

  const char* in = "Input";
  app.add_option("--input_text", prompts.input_text, "one or more prompts")
      ->capture_default_str()
      ->group(in);
  app.add_option(
         "--input_file", prompts.input_file,
         "prompts from a .txt (one a line), .csv or .npy (token ids, one a row; a .npy row may end "
         "in -1s)")
      ->group(in);
  app.add_option(
         "--max_input_length", prompts.max_input_length,
         "cut longer prompts from the left; default: a prompt beyond the context is an error")
      ->group(in);
  app.add_flag("--no_add_special_tokens", prompts.no_add_special_tokens, "no bos before a text")
      ->group(in);
  app.add_flag("--chat", prompts.chat, "put each text into the checkpoint's chat template")
      ->group(in);

  const char* choose = "Sampling";
  app.add_option("--temperature", sampling.temperature, "divides the logits")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--top_k", sampling.top_k, "keep the k most likely tokens; 1: greedy, 0: all")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--top_p", sampling.top_p,
                 "keep the fewest tokens that reach this probability; 0: all")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--min_p", sampling.min_p,
                 "keep tokens of at least this times the best probability")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--random_seed", sampling.seed, "the same seed gives the same tokens")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--repetition_penalty", sampling.repetition_penalty,
                 "divides (or multiplies, if negative) the logits of tokens seen; 1: off")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--presence_penalty", sampling.presence_penalty,
                 "taken from the logits of tokens generated before")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--frequency_penalty", sampling.frequency_penalty,
                 "the same, times how often they were")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--no_repeat_ngram_size", sampling.no_repeat_ngram_size,
                 "no sequence of so many tokens comes twice; 0: off")
      ->capture_default_str()
      ->group(choose);
  app.add_option("--bad_words", bad_words, "texts whose tokens are never generated in a row")
      ->group(choose);
  app.add_option("--num_return_sequences", num_return_sequences,
                 "sequences a prompt: each with a seed of its own, or the best beams; default: "
                 "num_beams")
      ->group(choose);
  app.add_option("--end_id", end_id,
                 "token that ends a sequence; -1: none; default: the model's eos");
  app.add_option("--stop_words", stop_words, "texts that end a sequence; they are not printed");

  const char* out = "Output";
  app.add_flag("--streaming", streaming, "print tokens as they come")->group(out);
  app.add_option("--streaming_interval", streaming_interval, "print every so many tokens")
      ->capture_default_str()
      ->group(out);
  app.add_option("--output_csv", output_csv, "generated ids, a row a sequence")->group(out);
  app.add_option("--output_npy", output_npy, "the same as int32 .npy, short rows padded with -1")
      ->group(out);
  app.add_option("--output_logits_npy", logits_npy,
                 "float32 [sequences, steps, vocab]: logits of each generated token, padded with 0")
      ->group(out);
  app.add_option("--output_context_logits_npy", context_logits_npy,
                 "float32 [prompt tokens, vocab] of the only prompt")
      ->group(out);
  app.add_option("--output_log_probs_npy", log_probs_npy,
                 "float32 [sequences, steps]: log-probability of each generated token, before "
                 "temperature and truncation, padded with 0")
      ->group(out);
  app.add_option("--output_cum_log_probs_npy", cum_log_probs_npy, "float32 [sequences]: their sums")
      ->group(out);
  app.add_flag("--run_profiling", profiling, "print tokens/s, time to first token, time per token")
      ->group(out);

  const char* cache = "KV cache";
  app.add_option("--kv_cache_enable_block_reuse", block_reuse,
                 "share the keys and values of equal beginnings of prompts")
      ->expected(0, 1)
      ->default_str("true")
      ->group(cache);
  app.add_flag("--enable_chunked_context", chunked_context, kAlways)->group(cache);

  const char* search = "Beam search";
  app.add_option("--num_beams", num_beams, "beams of each prompt; 1: no search")
      ->capture_default_str()
      ->group(search);
  app.add_option("--length_penalty", length_penalty,
                 "a beam's score is its log-probability / its length ^ this")
      ->capture_default_str()
      ->group(search);
  app.add_option(
         "--early_stopping", early_stopping,
         "with num_beams finished beams, stop at once (1), when the best open one scores no "
         "better now (0) or at any length (2)")
      ->capture_default_str()
      ->group(search);
  app.add_option("--beam_search_diversity_rate", diversity_rate,
                 "continuations of beam i (0 the best) get i times this added to their score")
      ->capture_default_str()
      ->group(search);
  guide.add(app);
}

engine::Beams RunFlags::beams() const {
  OSTRO_REQUIRE(num_beams >= 1, "--num_beams is ", num_beams, "; it must be at least 1");
  if (num_beams == 1) {
    const auto only = [](const char* flag, double value, double off) {
      OSTRO_REQUIRE(value == off, flag, ' ', value, " goes with --num_beams over 1");
    };
    only("--length_penalty", length_penalty, 1);
    only("--early_stopping", double(early_stopping), 1);
    only("--beam_search_diversity_rate", diversity_rate, 0);
    return {};
  }
  OSTRO_REQUIRE(early_stopping >= 0 && early_stopping <= 2, "--early_stopping is ", early_stopping,
                "; it must be 0, 1 or 2");
  OSTRO_REQUIRE(!streaming, "--streaming prints tokens as they come; those of ", num_beams,
                " beams are known when the search has ended");
  OSTRO_REQUIRE(stop_words.empty(), "--stop_words are looked for in texts as they come; those of ",
                num_beams, " beams are known when the search has ended");
  using enum engine::EarlyStopping;
  return {.width = num_beams,
          .length_penalty = float(length_penalty),
          .early_stopping = early_stopping == 0   ? no
                            : early_stopping == 1 ? yes
                                                  : never,
          .diversity_rate = float(diversity_rate)};
}

// What one prompt has become so far.
struct Sequence {
  std::vector<std::int32_t> ids;
  std::vector<float> log_probs;
  std::vector<float> logits;
  std::unique_ptr<txt::IncrementalDetokenizer> detokenizer;
  std::unique_ptr<txt::StopStrings> stops;
  std::string text;
  bool ended = false;
};

std::string joined(const std::vector<std::int32_t>& ids, const char* separator) {
  std::string s;
  for (std::size_t i = 0; i < ids.size(); ++i) s += (i ? separator : "") + std::to_string(ids[i]);
  return s;
}

std::string quoted(const std::string& s) { return '"' + s + '"'; }

// Not printf: a generated text may hold a NUL.
void write_line(const std::string& line) {
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
}

// The whole run on rank 0.
class Run {
 public:
  Run(const RunFlags& flags, const std::vector<std::vector<std::int32_t>>& prompts,
      const txt::Tokenizer* tokenizer, Session& session)
      : flags_(flags),
        prompts_(prompts),
        tokenizer_(tokenizer),
        session_(session),
        engine_(session.rank, session.config.model, {.block_reuse = flags.block_reuse}),
        sequences_(prompts.size() * std::size_t(flags.sequences_each())) {}

  void operator()() {
    submit();
    while (!engine_.idle())
      for (engine::Event& event : engine_.step()) take(event);
    seconds_ = watch_.seconds();
    if (streams_text()) std::printf("\"\n");
    for (std::size_t i = 0; i < sequences_.size(); ++i)
      if (!flags_.streaming) print(i);
    write_files();
    if (flags_.profiling) print_profile();
  }

 private:
  // The sequences of a prompt stand side by side.
  std::size_t prompt_of(std::size_t i) const { return i / std::size_t(flags_.sequences_each()); }
  std::size_t beam_of(std::size_t i) const { return i % std::size_t(flags_.sequences_each()); }

  // A lone stream of text is printed piece by piece, several a line each time.
  bool streams_text() const { return flags_.streaming && sequences_.size() == 1 && tokenizer_; }

  void submit() {
    const model::ModelConfig& model = session_.config.model;
    std::vector<std::int32_t> end_ids;
    if (flags_.end_id == -2) {
      end_ids.assign(model.eos.begin(), model.eos.end());
      if (tokenizer_ && end_ids.empty() && tokenizer_->eos_id()) end_ids = {*tokenizer_->eos_id()};
    } else if (flags_.end_id != -1) {
      OSTRO_REQUIRE(flags_.end_id >= 0 && flags_.end_id < model.vocab, "--end_id is ",
                    flags_.end_id, "; the vocabulary has ids 0 to ", model.vocab - 1,
                    ", and -1 is none");
      end_ids = {std::int32_t(flags_.end_id)};
    }
    const bool context_logits = !flags_.context_logits_npy.empty();
    const bool log_probs = !flags_.log_probs_npy.empty() || !flags_.cum_log_probs_npy.empty();
    OSTRO_REQUIRE(
        !context_logits || sequences_.size() == 1 || (prompts_.size() == 1 && flags_.num_beams > 1),
        "--output_context_logits_npy takes one prompt and one sequence, there are ",
        sequences_.size());
    const engine::Beams beams = flags_.beams();
    std::shared_ptr<const guide::Grammar> grammar;
    if (const auto guide = flags_.guide.guide())
      grammar = compile(*guide, *tokenizer_, model.vocab);
    const auto sequences = std::int32_t(beams.width > 1 ? flags_.sequences_each() : 1);
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      engine::Sampling sampling = flags_.sampling;
      sampling.seed = engine::sequence_seed(sampling.seed, std::int32_t(beam_of(i)));
      if (tokenizer_) {
        sequences_[i].detokenizer = std::make_unique<txt::IncrementalDetokenizer>(*tokenizer_);
        sequences_[i].stops = std::make_unique<txt::StopStrings>(flags_.stop_words);
      }
      if (beams.width > 1 && beam_of(i) > 0) continue;  // the prompt's one request has them all
      const engine::RequestId id = submit(prompt_of(i), {.prompt = prompts_[prompt_of(i)],
                                                         .max_new_tokens = flags_.max_output_len,
                                                         .sampling = sampling,
                                                         .end_ids = end_ids,
                                                         .logits = !flags_.logits_npy.empty(),
                                                         .prompt_logits = context_logits,
                                                         .prompt_log_probs = false,
                                                         .sequences = sequences,
                                                         .log_probs = log_probs,
                                                         .beams = beams,
                                                         .guide = grammar});
      index_[id] = i;
    }
    for (std::size_t i = 0; i < prompts_.size(); ++i) {
      write_line(text(
          "Input [Text ", i, "]: ",
          tokenizer_ ? quoted(tokenizer_->decode(prompts_[i], false)) : joined(prompts_[i], " ")));
      if (streams_text()) std::printf("Output [Text 0 Beam 0]: \"");
    }
    std::fflush(stdout);
  }

  engine::RequestId submit(std::size_t prompt, engine::Request request) {
    try {
      return engine_.submit(std::move(request));
    } catch (const InvalidArgument& e) {
      OSTRO_THROW(InvalidArgument, "prompt ", prompt, ": ", e.what());
    }
  }

  void take(engine::Event& event) {
    const std::size_t i = index_.at(event.id) + std::size_t(event.sequence);
    Sequence& s = sequences_[i];
    context_logits_.insert(context_logits_.end(), event.prompt_logits.begin(),
                           event.prompt_logits.end());
    if (event.has_token) {
      if (first_token_ < 0) first_token_ = watch_.seconds();
      ++generated_;
      const bool end = event.finish == engine::Finish::end_id;
      if (!end) s.ids.push_back(event.token);
      s.log_probs.push_back(event.log_prob);
      s.logits.insert(s.logits.end(), event.logits.begin(), event.logits.end());
      if (!end && s.detokenizer) add_text(event, s, s.detokenizer->push(event.token));
    }
    if (event.finish != engine::Finish::none && !s.ended) end_text(s);
    if (event.finish != engine::Finish::none) s.ended = true;
    if (flags_.streaming && !streams_text() &&
        (s.ended || s.ids.size() % std::size_t(flags_.streaming_interval) == 0))
      print(i);
  }

  void add_text(const engine::Event& event, Sequence& s, std::string_view piece) {
    const txt::StopStrings::Step step = s.stops->push(piece);
    release(s, step.text);
    if (!step.stop) return;
    s.ended = true;
    engine_.cancel(event.id);
  }

  void end_text(Sequence& s) {
    if (!s.detokenizer) return;
    release(s, s.stops->push(s.detokenizer->finish()).text);
    release(s, s.stops->finish());
  }

  void release(Sequence& s, const std::string& certain) {
    s.text += certain;
    if (!streams_text()) return;
    std::fwrite(certain.data(), 1, certain.size(), stdout);
    if (s.ids.size() % std::size_t(flags_.streaming_interval) == 0) std::fflush(stdout);
  }

  void print(std::size_t i) const {
    const Sequence& s = sequences_[i];
    write_line(text("Output [Text ", prompt_of(i), " Beam ", beam_of(i),
                    "]: ", tokenizer_ ? quoted(s.text) : joined(s.ids, " ")));
    if (flags_.streaming) std::fflush(stdout);
  }

  // rows[i] as one row of `width` values each `size` wide, short ones padded.
  template <class T, class F>
  std::vector<T> table(std::size_t width, T padding, F&& row_of) const {
    std::vector<T> all;
    for (const Sequence& s : sequences_) {
      const std::vector<T>& row = row_of(s);
      all.insert(all.end(), row.begin(), row.end());
      all.resize(all.size() + width - row.size(), padding);
    }
    return all;
  }

  void write_files() const {
    const auto rows = std::int64_t(sequences_.size());
    std::size_t longest = 0, steps = 0;
    for (const Sequence& s : sequences_) {
      longest = std::max(longest, s.ids.size());
      steps = std::max(steps, s.log_probs.size());
    }
    const std::int64_t vocab = session_.config.model.vocab;
    if (!flags_.output_csv.empty()) {
      std::string csv;
      for (const Sequence& s : sequences_) csv += joined(s.ids, ",") + "\n";
      replace_file(flags_.output_csv, {std::as_bytes(std::span(csv))});
    }
    if (!flags_.output_npy.empty())
      write_npy(flags_.output_npy,
                table<std::int32_t>(
                    longest, -1, [](auto& s) -> auto& { return s.ids; }),
                {rows, std::int64_t(longest)});
    if (!flags_.logits_npy.empty())
      write_npy(flags_.logits_npy,
                table<float>(
                    steps * std::size_t(vocab), 0, [](auto& s) -> auto& { return s.logits; }),
                {rows, std::int64_t(steps), vocab});
    if (!flags_.context_logits_npy.empty())
      write_npy(flags_.context_logits_npy, context_logits_,
                {std::int64_t(context_logits_.size()) / vocab, vocab});
    if (!flags_.log_probs_npy.empty())
      write_npy(flags_.log_probs_npy,
                table<float>(
                    steps, 0, [](auto& s) -> auto& { return s.log_probs; }),
                {rows, std::int64_t(steps)});
    if (!flags_.cum_log_probs_npy.empty()) {
      std::vector<float> sums;
      for (const Sequence& s : sequences_) {
        double sum = 0;
        for (float x : s.log_probs) sum += x;
        sums.push_back(float(sum));
      }
      write_npy(flags_.cum_log_probs_npy, sums, {rows});
    }
  }

  void print_profile() const {
    std::int64_t prompt_tokens = 0;
    for (const auto& p : prompts_) prompt_tokens += std::int64_t(p.size());
    const double decode = seconds_ - first_token_;
    const std::int64_t after = generated_ - std::int64_t(sequences_.size());
    std::printf("Profile: %zu sequences, %lld prompt tokens, %lld generated in %.3f s\n",
                sequences_.size(), static_cast<long long>(prompt_tokens),
                static_cast<long long>(generated_), seconds_);
    std::printf("  time to first token  %.2f ms\n", first_token_ * 1e3);
    if (after > 0)
      std::printf("  time per token       %.3f ms a sequence\n",
                  decode * 1e3 / (double(after) / double(sequences_.size())));
    std::printf("  throughput           %.1f output tokens/s\n", double(generated_) / seconds_);
  }

  const RunFlags& flags_;
  const std::vector<std::vector<std::int32_t>>& prompts_;
  const txt::Tokenizer* tokenizer_;
  Session& session_;
  engine::Engine engine_;
  std::vector<Sequence> sequences_;
  std::map<engine::RequestId, std::size_t> index_;
  std::vector<float> context_logits_;
  Stopwatch watch_;
  double first_token_ = -1;
  double seconds_ = 0;
  std::int64_t generated_ = 0;
};

}  // namespace

int run_command(const Arguments& args) {
  CLI::App app("Generates text with an engine.", "ostro run");
  RunFlags flags;
  flags.add(app);
  if (!parse(app, args)) return 0;
  const engine::Beams beams = flags.beams();
  engine::check(beams);
  engine::check(flags.sampling);
  const bool guided = flags.guide.guide().has_value();
  OSTRO_REQUIRE(!guided || !flags.prompts.tokenizer_dir.empty(),
                "a guide is about text: it needs --tokenizer_dir");
  OSTRO_REQUIRE(flags.max_output_len > 0, "--max_output_len is ", flags.max_output_len,
                "; it must be at least 1");
  OSTRO_REQUIRE(flags.prompts.max_input_length >= 0, "--max_input_length is ",
                flags.prompts.max_input_length, "; it must be at least 1");
  OSTRO_REQUIRE(flags.sequences_each() > 0, "--num_return_sequences is ", flags.sequences_each(),
                "; it must be at least 1");
  OSTRO_REQUIRE(flags.streaming_interval > 0, "--streaming_interval is ", flags.streaming_interval,
                "; it must be at least 1");

  for (const std::string& path :
       {flags.output_csv, flags.output_npy, flags.logits_npy, flags.context_logits_npy,
        flags.log_probs_npy, flags.cum_log_probs_npy})
    check_can_be_written(path);

  std::unique_ptr<txt::Tokenizer> tokenizer;
  std::vector<std::vector<std::int32_t>> prompts;
  if (prints()) {
    if (!flags.prompts.tokenizer_dir.empty())
      tokenizer = txt::load_tokenizer(flags.prompts.tokenizer_dir);
    OSTRO_REQUIRE(tokenizer || flags.stop_words.empty(),
                  "--stop_words are texts: they need --tokenizer_dir");
    prompts = read_prompts(flags.prompts, tokenizer.get());
    OSTRO_REQUIRE(tokenizer || flags.bad_words.empty(),
                  "--bad_words are texts: they need --tokenizer_dir");
    for (const std::string& word : flags.bad_words)
      flags.sampling.bad_words.push_back(tokenizer->encode(word, {.add_special_tokens = false}));
  }
  const std::int64_t logit_rows = flags.context_logits_npy.empty() ? 0 : 512;
  return run_on_ranks(flags.runtime, logit_rows,
                      [&](Session& session) { Run(flags, prompts, tokenizer.get(), session)(); });
}

}  // namespace ostro::cli
