#include "guide/compiler.h"

#include <algorithm>

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
      return xgrammar::Grammar::FromJSONSchema(R"({"type": "object"})", true, std::nullopt,
                                               std::nullopt, false, kMostSpaces);
    case Kind::json_schema:
      return xgrammar::Grammar::FromJSONSchema(guide.text, true, std::nullopt, std::nullopt, true,
                                               kMostSpaces);
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

// What a text may begin with: each token by the bytes that it stands for there.
std::vector<std::uint32_t> first_tokens(const Grammar& grammar) {
  xgrammar::GrammarMatcher matcher(grammar.compiled);
  std::vector<std::uint32_t> first(words_for(grammar.tokens->vocab));
  fill(matcher, *grammar.tokens, first);
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

Compiler::Compiler(Vocabulary vocabulary, std::int64_t vocab, std::size_t cache_bytes)
    : tokens_([&] {
        OSTRO_REQUIRE(std::int64_t(vocabulary.bytes.size()) <= vocab, "the vocabulary has ",
                      vocabulary.bytes.size(), " tokens, the model ", vocab);
        const xgrammar::TokenizerInfo info(vocabulary.bytes, xgrammar::VocabType::RAW, int(vocab),
                                           std::vector<std::int32_t>{});
        return new Tokens{sets_of(vocabulary, vocab),
                          xgrammar::GrammarCompiler(info, 1, /*cache_enabled=*/false)};
      }()),
      cache_bytes_(cache_bytes) {}
Compiler::~Compiler() = default;

std::shared_ptr<const Grammar> Compiler::make(const Guide& guide) const {
  check_limits(guide);
  try {
    auto grammar =
        std::make_shared<Grammar>(tokens_->sets, tokens_->compiler.CompileGrammar(parse(guide)));
    grammar->at_start = guide.at_start && !tokens_->sets->at_start.empty();
    if (grammar->at_start) grammar->first = first_tokens(*grammar);
    return grammar;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    OSTRO_THROW(InvalidArgument, name(guide.kind), " cannot be used: ", reason(e.what()));
  }
}

std::shared_ptr<const Grammar> Compiler::compile(const Guide& guide) {
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto it = entries_.find(guide);
    if (it == entries_.end()) break;
    if (it->second.grammar) {
      by_use_.splice(by_use_.begin(), by_use_, it->second.used);
      return it->second.grammar;
    }
    compiled_.wait(lock);
  }
  const auto it = entries_.emplace(guide, Entry{}).first;
  lock.unlock();
  std::shared_ptr<const Grammar> grammar;
  try {
    grammar = make(guide);
  } catch (...) {
    lock.lock();
    entries_.erase(it);
    compiled_.notify_all();
    throw;
  }
  lock.lock();
  by_use_.push_front(&it->first);
  it->second = {grammar, by_use_.begin()};
  bytes_ += size_of(*grammar);
  evict();
  compiled_.notify_all();
  return grammar;
}

// The one used last stays, whatever its size.
void Compiler::evict() {
  while (bytes_ > cache_bytes_ && by_use_.size() > 1) {
    const auto it = entries_.find(*by_use_.back());
    bytes_ -= size_of(*it->second.grammar);
    by_use_.pop_back();
    entries_.erase(it);
  }
}

}  // namespace ostro::guide
