#include "eval/scorer.h"

#include <deque>
#include <map>

#include "engine/sampler.h"

namespace ostro::eval {
namespace {

struct Piece {
  std::size_t document = 0;
  Window window;
};

std::vector<Piece> pieces_of(const Texts& texts) {
  std::vector<Piece> pieces;
  for (std::size_t d = 0; d < texts.documents.size(); ++d)
    for (const Window& w :
         windows_of(std::int64_t(texts.documents[d].size()), texts.length, texts.stride))
      pieces.push_back({d, w});
  return pieces;
}

// Sends the pieces to one engine in their order and tells which piece an event is of.
class Feed {
 public:
  Feed(engine::Engine& engine, const Texts& texts, const std::vector<Piece>& pieces, bool logits)
      : engine_(engine), texts_(texts), pieces_(pieces), logits_(logits) {}

  bool ended() const { return sent_ == pieces_.size() && engine_.idle(); }
  std::size_t sent() const { return sent_; }

  // One step; `take` gets the piece's index and its event.
  template <class Take>
  void step(const Take& take) {
    for (; sent_ < pieces_.size() && open_.size() < std::size_t(kMostOpen); ++sent_) {
      const Piece& piece = pieces_[sent_];
      const auto& ids = texts_.documents[piece.document];
      open_[engine_.submit(
          {.prompt = {ids.begin() + piece.window.begin, ids.begin() + piece.window.end},
           .max_new_tokens = 0,
           .sampling = {},
           .end_ids = {},
           .logits = false,
           .prompt_logits = logits_,
           .prompt_log_probs = !logits_})] = sent_;
    }
    for (engine::Event& event : engine_.step()) {
      const std::size_t piece = open_.at(event.id);
      const bool last = event.last;
      const engine::RequestId id = event.id;
      take(piece, event);
      if (last) open_.erase(id);
    }
  }

 private:
  engine::Engine& engine_;
  const Texts& texts_;
  const std::vector<Piece>& pieces_;
  const bool logits_;
  std::size_t sent_ = 0;
  std::map<engine::RequestId, std::size_t> open_;
};

class Comparer {
 public:
  Comparer(const Texts& texts, const std::vector<Piece>& pieces, std::int64_t vocab)
      : texts_(texts), pieces_(pieces), vocab_(std::size_t(vocab)) {}

  // Side 0 is the model, side 1 the reference.
  void take(std::size_t side, std::size_t piece, const engine::Event& event) {
    Pair& pair = open_[piece];
    for (std::size_t at = 0; at < event.prompt_logits.size(); at += vocab_) {
      const auto row = event.prompt_logits.begin() + std::ptrdiff_t(at);
      pair.rows[side].emplace_back(row, row + std::ptrdiff_t(vocab_));
      ++rows_[side];
    }
    while (!pair.rows[0].empty() && !pair.rows[1].empty()) match(piece, pair);
    if (pair.done == pieces_[piece].window.end - pieces_[piece].window.begin) open_.erase(piece);
  }

  std::int64_t rows(std::size_t side) const { return rows_[side]; }
  const Comparison& result() const { return result_; }

 private:
  struct Pair {
    std::deque<std::vector<float>> rows[2];  // of one side that the other has not brought yet
    std::int64_t done = 0;                   // rows that both have brought
  };

  // Row i of a piece predicts its token i + 1.
  void match(std::size_t index, Pair& pair) {
    const Piece& piece = pieces_[index];
    const std::vector<float> model = std::move(pair.rows[0].front());
    const std::vector<float> reference = std::move(pair.rows[1].front());
    for (auto& rows : pair.rows) rows.pop_front();
    const std::int64_t token = piece.window.begin + ++pair.done;
    if (token < piece.window.scored || token >= piece.window.end) return;
    const std::int32_t id = texts_.documents[piece.document][std::size_t(token)];
    result_.model.nats -= engine::log_prob(model, id);
    result_.reference.nats -= engine::log_prob(reference, id);
    ++result_.model.tokens;
    ++result_.reference.tokens;
    result_.divergences.add(reference, model);
  }

  const Texts& texts_;
  const std::vector<Piece>& pieces_;
  const std::size_t vocab_;
  std::map<std::size_t, Pair> open_;
  std::int64_t rows_[2] = {0, 0};
  Comparison result_;
};

}  // namespace

Score score(engine::Engine& engine, const Texts& texts, const Progress& progress) {
  const std::vector<Piece> pieces = pieces_of(texts);
  std::map<std::size_t, std::int64_t> next;  // token of each open piece
  Score score;
  std::size_t ended = 0;
  Feed feed(engine, texts, pieces, false);
  while (!feed.ended()) {
    feed.step([&](std::size_t i, const engine::Event& event) {
      const Window& window = pieces[i].window;
      std::int64_t& token = next.try_emplace(i, window.begin + 1).first->second;
      for (float log_prob : event.prompt_log_probs)
        if (token++ >= window.scored) {
          score.nats -= log_prob;
          ++score.tokens;
        }
      if (!event.last) return;
      next.erase(i);
      ++ended;
    });
    progress(double(ended) / double(pieces.size()));
  }
  return score;
}

Comparison compare(engine::Engine& model, engine::Engine& reference, std::int64_t vocab,
                   const Texts& texts, const Progress& progress) {
  const std::vector<Piece> pieces = pieces_of(texts);
  Comparer comparer(texts, pieces, vocab);
  Feed feeds[] = {{model, texts, pieces, true}, {reference, texts, pieces, true}};
  while (!feeds[0].ended() || !feeds[1].ended()) {
    const bool behind = comparer.rows(1) < comparer.rows(0);
    const std::size_t side = feeds[0].ended() || (behind && !feeds[1].ended()) ? 1 : 0;
    feeds[side].step(
        [&](std::size_t piece, const engine::Event& event) { comparer.take(side, piece, event); });
    progress(double(feeds[1].sent()) / double(pieces.size()));
  }
  return comparer.result();
}

}  // namespace ostro::eval
