#include "guide/compiler.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "guide/choice_list.h"
#include "guide/grammar.h"
#include "guide/limits.h"
#include "guide/xgrammar_log.h"

namespace ostro::guide {
namespace {

// Of the process, as its threads and its end are.
std::atomic<int> compiling_threads = 0;

constexpr int kMostSpaces = 32;  // between two parts of JSON: no model writes spaces for ever

const char* name(Kind kind) {
  switch (kind) {
    case Kind::json_object:
      return "the JSON grammar";
    case Kind::json_schema:
      return "the JSON schema";
    case Kind::regex:
      return "the regular expression";
    case Kind::grammar:
      return "the grammar";
    case Kind::choice:
      return "the list of choices";
  }
  OSTRO_THROW(InternalError, "there is no guide of kind ", int(kind));
}

// xgrammar's messages begin with a time and a place in its sources.
std::string reason(std::string message) {
  if (message.starts_with('['))
    if (const auto place = message.find(".cc:"); place != std::string::npos)
      if (const auto end = message.find(": ", place); end != std::string::npos)
        message.erase(0, end + 2);
  while (!message.empty() && message.back() == '\n') message.pop_back();
  return message;
}

xgrammar::Grammar read(const Guide& guide) {
  switch (guide.kind) {
    case Kind::json_object:
      return xgrammar::Grammar::FromJSONSchema(R"({"type": "object"})", guide.any_spaces,
                                               std::nullopt, std::nullopt, false, kMostSpaces);
    case Kind::json_schema:
      return xgrammar::Grammar::FromJSONSchema(guide.text, guide.any_spaces, std::nullopt,
                                               std::nullopt, true, kMostSpaces);
    case Kind::regex:
      return xgrammar::Grammar::FromRegex(guide.text);
    case Kind::grammar:
      return xgrammar::Grammar::FromEBNF(guide.text);
    case Kind::choice:
      return xgrammar::Grammar::FromEBNF(grammar_of_choices(guide.text));
  }
  OSTRO_THROW(InternalError, "there is no guide of kind ", int(guide.kind));
}

// What xgrammar would leave out with a warning is refused.
xgrammar::Grammar parse(const Guide& guide) {
  const Warnings warnings;
  xgrammar::Grammar grammar = read(guide);
  OSTRO_REQUIRE(warnings.first().empty(), name(guide.kind), " cannot be used: ", warnings.first());
  return grammar;
}

// What an output may begin with; at_start: each token by the bytes that it stands for there.
std::vector<std::uint32_t> first_tokens(const Grammar& grammar) {
  const double begin = thread_seconds();
  xgrammar::GrammarMatcher matcher(grammar.compiled);
  std::vector<std::uint32_t> first(words_for(grammar.tokens->vocab));
  fill(matcher, *grammar.tokens, first);
  const double seconds = thread_seconds() - begin;
  OSTRO_REQUIRE(seconds <= kLongestTokenSeconds,
                "the guide has so many ways to begin that the first ", "token takes ", seconds,
                " s; the limit is ", kLongestTokenSeconds, " s");
  if (!grammar.at_start) return first;
  for (const auto& [token, bytes] : grammar.tokens->at_start) {
    bool fits = bytes.empty();
    if (!fits && matcher.AcceptString(bytes)) {
      fits = true;
      matcher.Rollback(1);
    }
    std::uint32_t& word = first[std::size_t(token) / 32];
    const std::uint32_t bit = 1u << (token % 32);
    word = fits ? word | bit : word & ~bit;
  }
  return first;
}

std::shared_ptr<const TokenSets> sets_of(const Vocabulary& vocabulary, std::int64_t vocab) {
  auto sets = std::make_shared<TokenSets>();
  sets->vocab = vocab;
  sets->text.resize(words_for(vocab));
  for (std::size_t t = 0; t < vocabulary.bytes.size(); ++t)
    if (!vocabulary.bytes[t].empty()) sets->text[t / 32] |= 1u << (t % 32);
  for (const auto& [token, bytes] : vocabulary.at_start) {
    OSTRO_REQUIRE(token >= 0 && token < vocab, "a vocabulary's at_start has the token ", token,
                  "; the model has ids 0 to ", vocab - 1);
    sets->at_start.emplace(token, bytes);
  }
  return sets;
}

std::size_t size_of(const Grammar& grammar) {
  return grammar.compiled.MemorySizeBytes() + grammar.first.size() * sizeof(std::uint32_t);
}

}  // namespace

// Kept by each thread that is at work: a compiler may go before it has ended.
struct Compiler::State : std::enable_shared_from_this<State> {
  using Clock = std::chrono::steady_clock;
  // Of one guide, kept by all who wait for it.
  struct Work {
    std::shared_ptr<const Grammar> grammar;
    std::string refusal;  // why there is none; each who waits throws an error of its own
    bool ended = false;
  };
  struct Entry {
    std::shared_ptr<const Grammar> grammar;  // null: it is at work
    std::list<const Guide*>::iterator used;
    std::shared_ptr<Work> work;
  };

  State(std::shared_ptr<const TokenSets> token_sets, const xgrammar::TokenizerInfo& info,
        const CompilerOptions& options)
      : sets_(std::move(token_sets)),
        xgrammar_(info, 1, /*cache_enabled=*/false),
        options_(options) {}

  using Entries = std::map<Guide, Entry>;

  std::shared_ptr<const Grammar> compile(const Guide&);
  std::shared_ptr<const Grammar> find(const Guide&);
  std::shared_ptr<const Grammar> remembered(const Guide&);
  std::shared_ptr<const Grammar> make(const Guide&);
  std::shared_ptr<Work> begin(const Guide&);
  void work_on(Entries::iterator, const std::shared_ptr<Work>&);
  void evict();

  const std::shared_ptr<const TokenSets> sets_;
  // Without xgrammar's own cache: its keys are printed grammars that it reads again, in which
  // characters beyond ASCII become others.
  xgrammar::GrammarCompiler xgrammar_;
  const CompilerOptions options_;
  std::mutex mutex_;
  std::condition_variable compiled_;  // some work has ended
  int at_work_ = 0;
  Entries entries_;
  std::list<const Guide*> by_use_;  // of entries with a grammar, the last used first
  std::size_t bytes_ = 0;
};

Compiler::Compiler(Vocabulary vocabulary, std::int64_t vocab, CompilerOptions options)
    : state_([&] {
        OSTRO_REQUIRE(std::int64_t(vocabulary.bytes.size()) <= vocab, "the vocabulary has ",
                      vocabulary.bytes.size(), " tokens, the model ", vocab);
        const xgrammar::TokenizerInfo info(vocabulary.bytes, xgrammar::VocabType::RAW, int(vocab),
                                           std::vector<std::int32_t>{});
        return std::make_shared<State>(sets_of(vocabulary, vocab), info, options);
      }()) {}

Compiler::~Compiler() {
  std::unique_lock lock(state_->mutex_);
  state_->compiled_.wait_for(lock, std::chrono::seconds(3), [&] { return state_->at_work_ == 0; });
}

std::shared_ptr<const Grammar> Compiler::compile(const Guide& guide) {
  return state_->compile(guide);
}

std::shared_ptr<const Grammar> Compiler::find(const Guide& guide) { return state_->find(guide); }

bool Compiler::made(const Grammar& grammar) const { return grammar.tokens == state_->sets_; }

int threads_at_work() { return compiling_threads; }

std::shared_ptr<const Grammar> Compiler::State::make(const Guide& guide) {
  check_limits(guide);
  try {
    auto grammar = std::make_shared<Grammar>(sets_, xgrammar_.CompileGrammar(parse(guide)));
    grammar->at_start = guide.at_start && !sets_->at_start.empty();
    grammar->first = first_tokens(*grammar);
    return grammar;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    OSTRO_THROW(InvalidArgument, name(guide.kind), " cannot be used: ", reason(e.what()));
  }
}

std::shared_ptr<const Grammar> Compiler::State::compile(const Guide& guide) {
  const Clock::time_point deadline = Clock::now() + options_.time_limit;
  std::unique_lock lock(mutex_);
  if (auto grammar = remembered(guide)) return grammar;
  const auto it = entries_.find(guide);
  if (it == entries_.end() && at_work_ >= options_.at_work) return nullptr;
  const std::shared_ptr<Work> work = it != entries_.end() ? it->second.work : begin(guide);
  const bool in_time = compiled_.wait_until(lock, deadline, [&] { return work->ended; });
  OSTRO_REQUIRE(in_time, name(guide.kind), " cannot be used: it takes longer than ",
                double(options_.time_limit.count()) / 1000, " s to compile");
  OSTRO_REQUIRE(work->grammar, work->refusal);
  return work->grammar;
}

std::shared_ptr<const Grammar> Compiler::State::find(const Guide& guide) {
  const std::lock_guard lock(mutex_);
  return remembered(guide);
}

// Under the mutex.
std::shared_ptr<const Grammar> Compiler::State::remembered(const Guide& guide) {
  const auto it = entries_.find(guide);
  if (it == entries_.end() || !it->second.grammar) return nullptr;
  by_use_.splice(by_use_.begin(), by_use_, it->second.used);
  return it->second.grammar;
}

void Compiler::State::work_on(Entries::iterator it, const std::shared_ptr<Work>& made) {
  try {
    made->grammar = make(it->first);
  } catch (const std::exception& e) {
    made->refusal = e.what();
  }
  const std::lock_guard lock(mutex_);
  made->ended = true;
  if (made->grammar) {
    by_use_.push_front(&it->first);
    it->second = {made->grammar, by_use_.begin(), nullptr};
    bytes_ += size_of(*made->grammar);
    evict();
  } else {
    entries_.erase(it);
  }
  --at_work_;
  compiled_.notify_all();
}

// Under the mutex.
std::shared_ptr<Compiler::State::Work> Compiler::State::begin(const Guide& guide) {
  auto made = std::make_shared<Work>();
  const auto it = entries_.emplace(guide, Entry{nullptr, {}, made}).first;
  ++compiling_threads;
  try {
    std::thread([self = shared_from_this(), it, made]() mutable {
      self->work_on(it, made);
      // Before the thread counts as ended: the last owner destroys what xgrammar has made.
      made.reset();
      self.reset();
      --compiling_threads;
    }).detach();
  } catch (const std::system_error& e) {
    --compiling_threads;
    entries_.erase(it);
    OSTRO_THROW(DeviceError, "no thread can be started to compile a guide: ", e.what());
  }
  ++at_work_;
  return made;
}

// The one used last stays, whatever its size.
void Compiler::State::evict() {
  while (bytes_ > options_.cache_bytes && by_use_.size() > 1) {
    const auto it = entries_.find(*by_use_.back());
    bytes_ -= size_of(*it->second.grammar);
    by_use_.pop_back();
    entries_.erase(it);
  }
}

}  // namespace ostro::guide
