#include "guide/compiler.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "guide/choice_list.h"
#include "guide/grammar.h"
#include "guide/limits.h"
#include "guide/xgrammar_log.h"

namespace ostro::guide {
namespace {

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

// Without xgrammar's own cache: its keys are printed grammars that it reads again, in which
// characters beyond ASCII become others.
struct Compiler::Tokens {
  std::shared_ptr<const TokenSets> sets;
  mutable xgrammar::GrammarCompiler compiler;
};

// Of one guide, kept by all who wait for it.
struct Compiler::Work {
  std::shared_ptr<const Grammar> grammar;
  std::exception_ptr error;
  bool ended = false;
};

Compiler::Compiler(Vocabulary vocabulary, std::int64_t vocab, CompilerOptions options)
    : tokens_([&] {
        OSTRO_REQUIRE(std::int64_t(vocabulary.bytes.size()) <= vocab, "the vocabulary has ",
                      vocabulary.bytes.size(), " tokens, the model ", vocab);
        const xgrammar::TokenizerInfo info(vocabulary.bytes, xgrammar::VocabType::RAW, int(vocab),
                                           std::vector<std::int32_t>{});
        return new Tokens{sets_of(vocabulary, vocab),
                          xgrammar::GrammarCompiler(info, 1, /*cache_enabled=*/false)};
      }()),
      options_(options) {}

Compiler::~Compiler() {
  std::unique_lock lock(mutex_);
  compiled_.wait(lock, [&] { return at_work_ == 0; });
  join_ended(lock);
}

std::shared_ptr<const Grammar> Compiler::make(const Guide& guide) const {
  check_limits(guide);
  try {
    auto grammar =
        std::make_shared<Grammar>(tokens_->sets, tokens_->compiler.CompileGrammar(parse(guide)));
    grammar->at_start = guide.at_start && !tokens_->sets->at_start.empty();
    grammar->first = first_tokens(*grammar);
    return grammar;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    OSTRO_THROW(InvalidArgument, name(guide.kind), " cannot be used: ", reason(e.what()));
  }
}

std::shared_ptr<const Grammar> Compiler::compile(const Guide& guide) {
  const Clock::time_point deadline = Clock::now() + options_.time_limit;
  std::unique_lock lock(mutex_);
  join_ended(lock);
  const auto known_or_free = [&] {
    return entries_.contains(guide) || at_work_ < options_.at_work;
  };
  if (!compiled_.wait_until(lock, deadline, known_or_free)) return nullptr;
  const auto it = entries_.find(guide);
  if (it != entries_.end() && it->second.grammar) {
    by_use_.splice(by_use_.begin(), by_use_, it->second.used);
    return it->second.grammar;
  }
  const std::shared_ptr<Work> work = it != entries_.end() ? it->second.work : begin(guide);
  const bool in_time = compiled_.wait_until(lock, deadline, [&] { return work->ended; });
  OSTRO_REQUIRE(in_time, name(guide.kind), " cannot be used: it takes longer than ",
                double(options_.time_limit.count()) / 1000, " s to compile");
  if (work->error) std::rethrow_exception(work->error);
  return work->grammar;
}

// Under the mutex.
std::shared_ptr<Compiler::Work> Compiler::begin(const Guide& guide) {
  auto made = std::make_shared<Work>();
  const auto it = entries_.emplace(guide, Entry{nullptr, {}, made}).first;
  const auto thread = threads_.emplace(threads_.end());
  try {
    *thread = std::thread([this, it, made, thread] {
      try {
        made->grammar = make(it->first);
      } catch (...) {
        made->error = std::current_exception();
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
      ended_.splice(ended_.end(), threads_, thread);
      --at_work_;
      compiled_.notify_all();
    });
  } catch (const std::system_error& e) {
    threads_.erase(thread);
    entries_.erase(it);
    OSTRO_THROW(DeviceError, "no thread can be started to compile a guide: ", e.what());
  }
  ++at_work_;
  return made;
}

void Compiler::join_ended(std::unique_lock<std::mutex>& lock) {
  std::list<std::thread> ended = std::move(ended_);
  ended_.clear();
  lock.unlock();
  for (std::thread& thread : ended) thread.join();
  lock.lock();
}

// The one used last stays, whatever its size.
void Compiler::evict() {
  while (bytes_ > options_.cache_bytes && by_use_.size() > 1) {
    const auto it = entries_.find(*by_use_.back());
    bytes_ -= size_of(*it->second.grammar);
    by_use_.pop_back();
    entries_.erase(it);
  }
}

}  // namespace ostro::guide
