// Many requests at once on one engine: the public C++ API of Ostro.
//
//   ostro::Executor executor({.engine_dir = "engines/mixtral"});
//   const ostro::Submission s = executor.submit({.prompt = {1, 328, 569}, .max_new_tokens = 8});
//   for (bool open = bool(s); open;)
//     for (const ostro::Response& r : executor.await_responses(s.id, std::chrono::seconds(1)))
//       ..., open = !r.is_last;
//
// Token ids in, token ids out: text stays with the caller. Requests are computed together, a step
// at a time, by one thread of the Executor (in-flight batching: a request joins and leaves between
// steps). What a request gets does not depend on what runs beside it.
// Threads. Every member function may be called from any thread at any time, but for the destructor.
// Errors. What is normal in service (a full queue, a bad request, a time-out) is a return value.
// The constructor throws std::runtime_error with a sentence that says what is wrong.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ostro {

using TokenId = std::int32_t;
using RequestId = std::int64_t;

enum class EarlyStopping {
  no,     // a beam may end the search only when no open one is likely to beat it
  yes,    // as soon as there are num_beams finished ones
  never,  // only when no open beam can beat it, however long it grows
};

// How the next token is chosen from the model's logits x. The order, as in transformers:
//
//   1. logit_bias           x[t] += bias
//   2. repetition_penalty p each token t of prompt and output: x[t] = x[t] < 0 ? x[t] p : x[t] / p
//   3. presence_penalty p, frequency_penalty f; c(t): occurrences of t in the output alone
//                           x[t] -= f c(t) + (c(t) > 0 ? p : 0)          (OpenAI's definition)
//   4. no_repeat_ngram_size n: no token that would complete an n-gram which prompt and output hold
//   5. bad_words            no token that would complete one of these sequences; what comes before
//                           its last token may lie in the prompt
//   6. min_tokens           no end id before the output has that many tokens
//   7. temperature          x /= temperature
//   8. top_k, top_p, min_p  each over what the one before left
//
// Greedy (the largest x after 6, the lower id among equals) if temperature is 0 or top_k is 1,
// which is the default: set top_k = 0 to sample. Equal logits keep the order of their ids.
struct SamplingConfig {
  float temperature = 1;   // >= 0
  std::int32_t top_k = 1;  // the most likely tokens that stay; 0: all
  float top_p = 0;         // the fewest tokens whose probabilities reach it stay; 0 or 1: all
  float min_p = 0;         // tokens of at least min_p times the best probability stay; in [0, 1]
  // The same seed gives the same tokens. Sequence i of num_return_sequences draws with a seed of
  // its own, made of this one and i; sequence 0 with this one.
  std::uint64_t seed = 0;

  float repetition_penalty = 1;  // > 0
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::int32_t no_repeat_ngram_size = 0;  // 0: off
  std::vector<std::pair<TokenId, float>> logit_bias = {};
  std::vector<std::vector<TokenId>> bad_words = {};
  std::int64_t min_tokens = 0;  // stop sequences do not end the output before it either

  // Beam search, for num_beams > 1, as transformers does it: the continuations with the largest
  // sums of log-probabilities (after 1 to 6, which see log-probabilities then) stay; nothing is
  // sampled. A beam's score is its sum / its length ^ length_penalty. The best
  // num_return_sequences beams are returned, the best first, when the search has ended: beams are
  // not streamed. The engine must have been built with --max_beam_width num_beams or more.
  std::int32_t num_beams = 1;
  float length_penalty = 1;
  EarlyStopping early_stopping = EarlyStopping::no;
  // Continuations of beam i (0: the best) get i times this added to their sums, so that worse beams
  // stay longer, as in TensorRT-LLM; 0: off.
  float beam_search_diversity_rate = 0;
};

enum class GuideKind {
  json_object,  // any JSON object; no text
  json_schema,  // JSON that fits the JSON schema `text`, with no properties that it does not name
  regex,        // the whole output matches the regular expression `text`
  grammar,      // a sentence of the EBNF grammar `text`, whose first rule is "root"
  choice,       // one of the strings of the JSON list `text`
};

// What each output of a request must look like: no token is chosen that leads away from it, and a
// sequence ends when nothing can follow. It comes after the rules of SamplingConfig and is never
// overruled by them. An output that max_new_tokens or a stop sequence ends is a beginning of such a
// text. Guides that a compiler could take long for are refused: texts over 64 KiB, nested deeper
// than 64, or with over 8192 symbols when bounded repetitions are written out; so are those that it
// does take more than 10 s for.
struct Guide {
  GuideKind kind = GuideKind::json_object;
  std::string text = {};
  bool at_start = false;  // the output begins a text of its own: see Vocabulary::at_start
  // Of JSON. false: a space after each comma and colon, as Python writes it, and no other.
  bool any_spaces = true;
};

// What Executor::prepare() has made of a Guide; for that executor, as long as somebody holds it.
struct CompiledGuide {
  virtual ~CompiledGuide() = default;
};

// The bytes of each token, for guides.
struct Vocabulary {
  std::vector<std::string> bytes = {};  // " the"; empty: special, in no guided text
  // Tokens that stand for other bytes where a text begins: SentencePiece drops a space there.
  std::vector<std::pair<TokenId, std::string>> at_start = {};
};

struct Request {
  std::vector<TokenId> prompt = {};  // at least one
  std::int64_t max_new_tokens = 16;  // 0: only the prompt is scored
  SamplingConfig sampling = {};
  std::optional<Guide> guide = {};                           // needs ExecutorConfig::vocabulary
  std::shared_ptr<const CompiledGuide> compiled_guide = {};  // in place of `guide`
  std::int32_t num_return_sequences = 1;                     // 1 to 128
  std::vector<TokenId> end_ids = {};  // any of these ends a sequence; ModelInfo has the model's
  std::vector<std::vector<TokenId>> stop_sequences = {};  // so does an output that ends with one

  std::int32_t priority = 0;  // a waiting request of higher priority starts first
  // Users share the engine fairly, by tokens computed for each, whatever number of requests they
  // bring. Requests without a name are one user.
  std::string user = {};
  std::string cache_salt = {};  // cached prompts are reused among requests of one salt alone
  std::chrono::milliseconds time_limit{0};  // since submit(); 0: none

  // Log-probabilities (natural, of the model: before everything that SamplingConfig does) of each
  // new token; a value k > 0: also the k most likely tokens at its place, the best first.
  std::optional<std::int32_t> log_probs = {};
  std::optional<std::int32_t> prompt_log_probs = {};  // the same for prompt tokens 1, 2, ...
  bool logits = false;                                // the model's, of each new token
  bool prompt_logits = false;                         // those that follow each prompt token
  bool streaming = true;  // false: one response a sequence, when it has ended
};

enum class SubmitStatus {
  accepted,
  queue_full,   // max_queue_size requests wait, or 4 guides are being compiled: try again later
  invalid,      // can never run: `message` says why
  unsupported,  // valid, but not in this build
  shut_down,    // shutdown() was called
  failed,       // the engine is broken: `message` says how; make another Executor
};

struct Submission {
  SubmitStatus status = SubmitStatus::accepted;
  RequestId id = 0;  // > 0 if accepted
  std::string message = {};

  explicit operator bool() const { return status == SubmitStatus::accepted; }
};

struct Preparation {
  SubmitStatus status = SubmitStatus::accepted;  // or queue_full, invalid, unsupported
  std::string message = {};
  std::shared_ptr<const CompiledGuide> guide = {};  // if accepted

  explicit operator bool() const { return status == SubmitStatus::accepted; }
};

enum class FinishReason {
  none,       // more follows
  end_id,     // its last token is one of end_ids
  length,     // max_new_tokens
  stop,       // its last tokens are one of stop_sequences
  guide,      // its guide lets nothing follow
  dead_end,   // its guide wants more, but no token goes on
  cancelled,  // cancel() or shutdown(Drain::no)
  timed_out,  // time_limit
  error,      // the engine failed: `error` says how
};
std::string_view name(FinishReason);  // "end_id"

struct TokenLogProb {
  TokenId token = 0;
  float log_prob = 0;
};

// Times of a request, in seconds since its submit(); negative: it did not get so far.
struct RequestStatistics {
  double started_s = -1;      // its first token was computed: the time in the queue
  double first_token_s = -1;  // TTFT
  double finished_s = -1;     // the last token of the last sequence
  std::int64_t prompt_tokens = 0;
  std::int64_t reused_tokens = 0;  // of the prompt, found in the KV cache
  std::int64_t output_tokens = 0;  // of all sequences
  std::int64_t pauses = 0;         // CapacityPolicy::max_utilization took its KV cache
};

// What became known of one sequence of a request. Those of a sequence come in order.
struct Response {
  RequestId id = 0;
  std::int32_t sequence = 0;  // 0 to num_return_sequences - 1
  // New since the last response; the end id and a stop sequence are among them.
  std::vector<TokenId> tokens = {};
  std::vector<float> log_probs = {};                         // [tokens], if asked for
  std::vector<std::vector<TokenLogProb>> alternatives = {};  // [tokens], if asked for
  std::vector<float> logits = {};                            // [tokens, vocab], if asked for
  double score =
      0;  // of a finished beam; else the sum of the log-probabilities so far, if asked for

  // Of the next prompt tokens, on sequence 0 before its first token; what was asked for.
  std::vector<float> prompt_log_probs = {};
  std::vector<std::vector<TokenLogProb>> prompt_alternatives = {};
  std::vector<float> prompt_logits = {};  // [prompt tokens, vocab]

  bool is_final = false;  // of this sequence
  bool is_last = false;   // of the request: no response of it follows, `statistics` are complete
  FinishReason finish = FinishReason::none;
  std::size_t stop_index = 0;  // FinishReason::stop: which of stop_sequences
  std::string error = {};
  RequestStatistics statistics = {};
};

enum class CapacityPolicy {
  guaranteed_no_evict,  // a request starts when the KV cache will hold all that run to their ends
  // A request starts when its prompt fits; when the cache is full the youngest pauses and is
  // computed again later, with the same tokens. More requests at once if few reach max_new_tokens.
  max_utilization,
};

enum class Severity { debug, info, warning, error };

struct KvCacheConfig {
  std::int64_t max_tokens = 0;  // 0: as many as fit
  double free_memory_fraction =
      0;                    // of the device's free memory; 0: 0.5 of a CPU's, 0.9 of a GPU's
  bool block_reuse = true;  // prompts with a common beginning are computed once
};

struct ExecutorConfig {
  std::string engine_dir = {};      // written by `ostro build`
  std::string device = "auto";      // auto, cpu or cuda
  int threads = 0;                  // of a CPU; 0: all cores
  std::int64_t max_batch_size = 0;  // sequences in one step; 0: the engine's, or 256 on a CPU
  std::int64_t max_num_tokens = 0;  // tokens of one step; 0: the engine's
  std::int64_t max_logit_rows = 0;  // prompt tokens of one step that are scored; 0: max_batch_size
  std::int64_t max_queue_size = 0;  // requests that wait; 0: no limit
  CapacityPolicy capacity_policy = CapacityPolicy::guaranteed_no_evict;
  // Seconds that prompts may hold up sequences that generate, about, in one step: their chunks are
  // sized by the speed of the steps before. 0: no limit but max_num_tokens.
  double prefill_stall_s = 0;
  // int4 weights: steps of more than 256 tokens round their activations to fp8, as `--fp8_prompts`
  // of docs/CLI.md does. Tokens then depend on the length of their steps.
  bool fp8_prompts = false;
  KvCacheConfig kv_cache = {};
  Vocabulary vocabulary = {};                                // empty: no guides
  std::size_t iteration_statistics = 1000;                   // steps that are remembered
  std::function<void(Severity, std::string_view)> log = {};  // may be called from several threads
};

// One step.
struct IterationStatistics {
  std::int64_t iteration = 0;  // from 1
  double end_s = 0;            // since the executor was made
  double step_s = 0;           // from planning it to its tokens
  std::int64_t running = 0;    // sequences in the step
  std::int64_t waiting = 0;    // sequences that had no place in it
  std::int64_t prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t kv_blocks_used = 0;
  std::int64_t kv_blocks_cached = 0;  // free to be used anew, but still good for reuse
};

// Everything since the executor was made; for /metrics.
struct ExecutorStatistics {
  std::int64_t queued = 0;                  // requests that have not started, now
  std::int64_t open = 0;                    // requests without their last response, now
  std::int64_t accepted = 0, rejected = 0;  // by submit()
  std::int64_t finished = 0, cancelled = 0, timed_out = 0, failed = 0;
  std::int64_t iterations = 0;
  std::int64_t prompt_tokens = 0;  // of the requests that started, reused ones included
  std::int64_t reused_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t pauses = 0;
  std::int64_t kv_blocks_total = 0, kv_blocks_used = 0, kv_blocks_cached = 0;
  std::int64_t kv_block_tokens = 0;  // tokens of a block
  double busy_s = 0;                 // inside steps
  // [layers][experts]: how many of the tokens that were computed chose each expert; empty for a
  // dense model.
  std::vector<std::vector<std::int64_t>> expert_tokens = {};
};

struct ModelInfo {
  std::string architecture = {};  // "MixtralForCausalLM"
  std::int64_t vocab = 0;
  std::int64_t context = 0;  // tokens of prompt and output at most
  std::optional<TokenId> bos_id = {};
  std::vector<TokenId> end_ids = {};
  bool dummy = false;  // weights drawn at random: the output means nothing
};

enum class Drain { no, yes };

class Executor {
 public:
  // Loads an engine on this process, whatever number of ranks it was built for.
  explicit Executor(const ExecutorConfig&);
  // As shutdown(Drain::no).
  ~Executor();
  Executor(Executor&&) noexcept;
  Executor& operator=(Executor&&) noexcept;

  // Checks the request and puts it in the queue. Does not wait, but for a `guide` that is not
  // remembered: it is compiled first.
  Submission submit(Request);

  // Compiles a guide and remembers it for a while. Milliseconds for most, seconds for large ones,
  // 10 at most; queue_full, at once, if 4 others are being compiled.
  Preparation prepare(const Guide&);
  // What is remembered of a guide; null if nothing is. Does not wait.
  std::shared_ptr<const CompiledGuide> find_prepared(const Guide&);
  // Guides that this process compiles. Those that took too long cannot be broken off: they go on,
  // after their executor too. While there are some main() must not return, which would destroy
  // statics under them; end the process with std::_Exit() instead.
  static int guides_at_work();

  // All responses that have come since the last call, of all requests or of one; waits for the
  // first of them, at most `timeout`, and returns none then. Each response is handed out once. At
  // once, with none, for a request whose last response is gone, and when nothing is open and the
  // executor has shut down.
  std::vector<Response> await_responses(std::chrono::milliseconds timeout);
  std::vector<Response> await_responses(RequestId, std::chrono::milliseconds timeout);

  // Ends a request before the next step: its memory is free, its last responses say cancelled.
  // False if it has ended or never was.
  bool cancel(RequestId);
  // Ends one sequence of a request before the next step; the others go on. Nothing happens if it
  // has ended, or if the request is a beam search, whose sequences are one. False as above.
  bool cancel(RequestId, std::int32_t sequence);

  // Takes no more requests. Drain::yes: returns when all that were accepted have ended. Drain::no:
  // cancels them. Responses can still be fetched afterwards. Calls after the first also wait.
  void shutdown(Drain);

  // Empty while the engine works; else the error that stopped it.
  std::string failure() const;
  ExecutorStatistics statistics() const;
  // Of the steps since the last call, the last ExecutorConfig::iteration_statistics of them.
  std::vector<IterationStatistics> take_iteration_statistics();
  const ModelInfo& model() const;

  // For src/api, which also makes executors over the ranks that the command line has started.
  class Core;
  explicit Executor(std::unique_ptr<Core>);
  const Core& core() const { return *core_; }

 private:
  std::unique_ptr<Core> core_;
};

}  // namespace ostro
