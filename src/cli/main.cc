#include <csignal>
#include <cstdio>
#include <iostream>

#include "cli/commands.h"
#include "cli/leave.h"
#include "cli/runtime.h"
#include "cli/version.h"

namespace ostro::cli {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Arguments&);
};

constexpr Command kCommands[] = {
    {"build", "turn a Hugging Face or Meta checkpoint, or dummy weights, into an engine",
     build_command},
    {"run", "generate text with an engine", run_command},
    {"serve", "answer many clients at once: an OpenAI-compatible HTTP server", serve_command},
    {"bench", "measure latency, and each kernel against this machine's ceilings", bench_command},
    {"eval", "score texts: perplexity", eval_command},
    {"inspect", "show an engine's configuration and tensors, or verify its files", inspect_command},
};

void print_help() {
  std::cout << "Ostro builds and runs Mixtral and LLaMA models.\n\nusage: ostro COMMAND "
               "[FLAGS]\n\ncommands:\n";
  for (const Command& c : kCommands) std::printf("  %-8s  %s\n", c.name, c.summary);
  std::cout
      << "\n`ostro COMMAND --help` lists the flags of a command, `ostro --version` the version.\n";
}

int dispatch(Arguments args) {
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_help();
    return args.empty() ? 2 : 0;
  }
  if (args[0] == "--version") {
    std::cout << "ostro " << kVersion << '\n';
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& c : kCommands) {
    names.push_back(c.name);
    if (args[0] == c.name) return c.run({args.begin() + 1, args.end()});
  }
  const std::string guess = nearest(args[0], names);
  OSTRO_THROW(InvalidArgument, "there is no command \"", args[0], "\"",
              guess.empty() ? "" : "; the nearest is ", guess, "; see ostro --help");
}

}  // namespace
}  // namespace ostro::cli

int main(int argc, char** argv) {
  using namespace ostro::cli;
  try {
    std::signal(SIGXFSZ, SIG_IGN);  // a file beyond the limit is a failed write, which is told
    remember_command_line(argc, argv);
    return leave(dispatch(normalised(argc, argv)));
  } catch (...) {
    const Failure failure = failure_at_hand();
    if (prints()) std::fprintf(stderr, "ostro: error: %s\n", failure.message.c_str());
    return leave(failure.code);
  }
}
