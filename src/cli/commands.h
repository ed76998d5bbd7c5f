// The subcommands. Each parses its own arguments (those after its name), does its work and returns
// the exit code; it throws what base/error.h lists.
#pragma once

#include <string>
#include <vector>

namespace ostro::cli {

using Arguments = std::vector<std::string>;

int build_command(const Arguments&);
int run_command(const Arguments&);
int serve_command(const Arguments&);
int bench_command(const Arguments&);
int eval_command(const Arguments&);
int inspect_command(const Arguments&);

}  // namespace ostro::cli
