#include "text/stop_strings.h"

#include "base/error.h"
#include "text/utf8.h"

namespace ostro::txt {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)), nodes_(1) {
  for (std::size_t i = 0; i < stops_.size(); ++i) {
    OSTRO_REQUIRE(!stops_[i].empty(), "stop string ", i, " is empty");
    OSTRO_REQUIRE(is_utf8(stops_[i]), "stop string ", i, " is not UTF-8");
    add(i);
  }
  link();
}

void StopStrings::add(std::size_t stop) {
  std::int32_t node = 0;
  for (char c : stops_[stop]) {
    std::int32_t next = child(node, c);
    if (next < 0) {
      next = static_cast<std::int32_t>(nodes_.size());
      nodes_[node].next.emplace_back(c, next);
      nodes_.push_back({.next = {}, .depth = nodes_[node].depth + 1});
    }
    node = next;
  }
  if (nodes_[node].stop < 0) nodes_[node].stop = static_cast<std::int32_t>(stop);
}

// Breadth first, so that the node's longest suffix, which is shorter, is linked before it.
void StopStrings::link() {
  std::vector<std::int32_t> order = {0};
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::int32_t parent = order[i];
    for (const auto& [c, node] : nodes_[parent].next) {
      if (parent != 0) nodes_[node].longest_suffix = step(nodes_[parent].longest_suffix, c);
      if (nodes_[node].stop < 0) nodes_[node].stop = nodes_[nodes_[node].longest_suffix].stop;
      order.push_back(node);
    }
  }
}

std::int32_t StopStrings::child(std::int32_t node, char c) const {
  for (const auto& [byte, next] : nodes_[node].next) {
    if (byte == c) return next;
  }
  return -1;
}

std::int32_t StopStrings::step(std::int32_t node, char c) const {
  while (true) {
    const std::int32_t next = child(node, c);
    if (next >= 0) return next;
    if (node == 0) return 0;
    node = nodes_[node].longest_suffix;
  }
}

StopStrings::Step StopStrings::push(std::string_view text) {
  if (found_) return {{}, found_};
  std::string all = std::move(held_);
  held_.clear();
  std::size_t end = all.size();
  all += text;
  for (; end < all.size(); ++end) {
    node_ = step(node_, all[end]);
    if (nodes_[node_].stop < 0) continue;
    found_ = nodes_[node_].stop;
    all.resize(end + 1 - stops_[*found_].size());
    return {std::move(all), found_};
  }
  const std::size_t certain = all.size() - nodes_[node_].depth;
  held_ = all.substr(certain);
  all.resize(certain);
  return {std::move(all), std::nullopt};
}

std::string StopStrings::finish() {
  node_ = 0;
  return std::exchange(held_, {});
}

}  // namespace ostro::txt
