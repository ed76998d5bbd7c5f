#include "sched/fair_queue.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace ostro::sched {

void FairQueue::push(SequenceId id, Demand demand, std::int64_t most_blocks) {
  if (users_.size() >= remembered_users_) forget_idle_users();
  User& user = users_[demand.user];
  if (user.open++ == 0) {
    user.served_tokens = std::max(user.served_tokens, now_);
    ++busy_;
  }
  const std::int32_t priority = demand.priority;
  where_.emplace(id, std::pair{priority, &user});
  prompt_tokens_ += std::int64_t(demand.prompt.size());
  most_blocks_ += most_blocks;
  lines_[priority][&user].push_back(
      {.id = id, .demand = std::move(demand), .most_blocks = most_blocks, .user = &user});
  ++size_;
}

std::vector<Waiting*> FairQueue::candidates(std::size_t most) {
  std::vector<Waiting*> all;
  for (auto& [priority, line] : lines_) {
    std::vector<std::deque<Waiting>*> users;
    for (auto& [user, waiting] : line) users.push_back(&waiting);
    // Equal users: the one whose sequence came first.
    std::ranges::sort(users, {}, [](const auto* w) {
      return std::pair{w->front().user->served_tokens, w->front().id};
    });
    for (std::size_t round = 0; !users.empty(); ++round) {
      std::erase_if(users, [&](const auto* w) { return w->size() <= round; });
      for (auto* waiting : users) {
        if (all.size() == most) return all;
        all.push_back(&(*waiting)[round]);
      }
    }
  }
  return all;
}

Waiting FairQueue::extract(SequenceId id) {
  const auto place = where_.find(id);
  OSTRO_CHECK(place != where_.end(), "sequence ", id, " does not wait");
  const auto [priority, user] = place->second;
  where_.erase(place);
  Line& line = lines_.at(priority);
  std::deque<Waiting>& waiting = line.at(user);
  const auto it = std::ranges::find(waiting, id, &Waiting::id);
  Waiting found = std::move(*it);
  waiting.erase(it);
  if (waiting.empty()) line.erase(user);
  if (line.empty()) lines_.erase(priority);
  --size_;
  prompt_tokens_ -= std::int64_t(found.demand.prompt.size());
  most_blocks_ -= found.most_blocks;
  return found;
}

Waiting FairQueue::start(SequenceId id, std::int64_t tokens) {
  Waiting found = extract(id);
  charge(*found.user, tokens);
  return found;
}

bool FairQueue::erase(SequenceId id) {
  if (!where_.contains(id)) return false;
  close(*extract(id).user);
  return true;
}

void FairQueue::close(User& user) {
  OSTRO_CHECK(user.open > 0, "a user has ", user.open, " open sequences");
  if (--user.open == 0) --busy_;
}

void FairQueue::charge(User& user, std::int64_t tokens) {
  user.served_tokens += double(tokens);
  now_ += double(tokens) / double(std::max<std::int64_t>(busy_, 1));
}

void FairQueue::forget_idle_users() {
  std::erase_if(users_, [&](const auto& entry) {
    return entry.second.open == 0 && entry.second.served_tokens <= now_;
  });
  remembered_users_ = std::max<std::size_t>(64, 2 * users_.size());
}

}  // namespace ostro::sched
