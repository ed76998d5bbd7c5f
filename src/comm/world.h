// This process as one of the ranks that run one program together: how it reaches the others, and
// how it ends without leaving them waiting.
//
//   std::unique_ptr<comm::World> world = ...;    // make_single_world, local::start_ranks,
//   mpi::join comm::Outcome end = world->finish(code, message); if (!end.message.empty())
//   print(end.message); return end.code;
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "comm/communicator.h"

namespace ostro::comm {

// What main prints on stderr, if anything, and returns.
struct Outcome {
  int code = 0;
  std::string message;
};

class World {
 public:
  // A World destroyed without finish() ends the other ranks as if this one had failed.
  virtual ~World() = default;

  // The group of all ranks. Lives as long as the World.
  virtual Communicator& communicator() = 0;

  // Ranks that share this machine, and this process's number among them: it may use
  // cores / ranks_on_this_host() of the cores.
  virtual int rank_on_this_host() const = 0;
  virtual int ranks_on_this_host() const = 0;

  // The last call of every rank, with the exit code and the message of its own result ("" and 0 if
  // all went well). A rank that fails ends the others within seconds; of all the messages exactly
  // the one that tells the cause is left for printing, and it names the rank unless that is rank 0.
  virtual Outcome finish(int code, std::string_view message) = 0;
};

// The world of one rank.
std::unique_ptr<World> make_single_world();

}  // namespace ostro::comm
