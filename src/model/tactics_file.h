// tactics.json of an engine: what `ostro build --tune` has measured on one device
// (docs/engine_format.md).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/log.h"
#include "ops/backend.h"

namespace ostro::model {

// This program's version.
std::string_view ostro_version();

struct MeasuredTactics {
  std::string device;   // as Backend::description() names it
  std::string version;  // of the Ostro whose kernels were measured
  ops::Tactics tactics;
};

// The file's text, and back; of another version, whose format may be another, nothing but the
// device is read. Throws InvalidArgument naming `source`, what was found and what is wanted.
std::string to_text(const MeasuredTactics&);
MeasuredTactics parse_tactics(std::string_view text, std::string_view source);

// Writes or replaces an engine's table, measured on `backend` by this program.
void write_tactics(const std::filesystem::path& engine_dir, const ops::Backend& backend,
                   const ops::Tactics&);

// That of an engine; empty if it has none.
std::optional<MeasuredTactics> read_tactics(const std::filesystem::path& engine_dir);

// Hands an engine's table, if it has one, to the backend. One of another device or version is left
// alone; the log says so. Throws InvalidArgument for a file that is damaged.
void use_tactics(const std::filesystem::path& engine_dir, ops::Backend&, const Log&);

}  // namespace ostro::model
