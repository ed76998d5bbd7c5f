// Before ranks of several hosts load an engine, rank 0 compares what they are about to run: a host
// may have an older engine, another Ostro, or not its part of the engine.
#pragma once

#include <span>
#include <string>

#include "comm/communicator.h"

namespace ostro::engine {

// What one rank is. All but `host` and the error must be equal on all ranks.
struct RankCard {
  std::string host = {};
  std::string version = {};  // of Ostro
  std::string dtype = {};
  std::string layout = {};  // "tp 2 x pp 2"
  std::string engine = {};  // checksum of its config.json, which has those of the files
  std::string limits = {};  // flags that size a step
  // Set if the rank cannot run at all: its exit code and why.
  int error_code = 0;
  std::string error = {};
};

// Throws on rank 0, naming the first rank that cannot run or differs from rank 0, its host, and
// both values: InvalidArgument, or the error of error_code. The others wait here and get that
// failure from their transport. Collective.
void call_roll(comm::Communicator& world, const RankCard& mine);

// What call_roll() does on rank 0. cards[r] is rank r's.
void check_roll(std::span<const RankCard> cards);

}  // namespace ostro::engine
