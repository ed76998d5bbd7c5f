#include "eval/scorer.h"

#include <map>

namespace ostro::eval {
namespace {

// Requests that an engine has at once: enough to fill its steps, few enough to hold.
constexpr std::size_t kMostOpen = 256;

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
  Feed(engine::Engine& engine, const Texts& texts, const std::vector<Piece>& pieces)
      : engine_(engine), texts_(texts), pieces_(pieces) {}

  bool ended() const { return sent_ == pieces_.size() && engine_.idle(); }

  // One step; `take` gets the piece's index and its event.
  template <class Take>
  void step(const Take& take) {
    for (; sent_ < pieces_.size() && open_.size() < kMostOpen; ++sent_) {
      const Piece& piece = pieces_[sent_];
      const auto& ids = texts_.documents[piece.document];
      open_[engine_.submit(
          {.prompt = {ids.begin() + piece.window.begin, ids.begin() + piece.window.end},
           .max_new_tokens = 0,
           .sampling = {},
           .end_ids = {},
           .logits = false,
           .prompt_logits = false,
           .prompt_log_probs = true})] = sent_;
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
  std::size_t sent_ = 0;
  std::map<engine::RequestId, std::size_t> open_;
};

}  // namespace

Score score(engine::Engine& engine, const Texts& texts, const Progress& progress) {
  const std::vector<Piece> pieces = pieces_of(texts);
  std::map<std::size_t, std::int64_t> next;  // token of each open piece
  Score score;
  std::size_t ended = 0;
  Feed feed(engine, texts, pieces);
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

}  // namespace ostro::eval
