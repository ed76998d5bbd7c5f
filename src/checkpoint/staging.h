// A directory that appears all at once: written under a hidden name beside its target, renamed
// last.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ostro::checkpoint {

// What `ostro build --tune` adds to an engine (model/tactics_file.h).
inline constexpr const char* kTacticsFileName = "tactics.json";

// Whether `dir` holds an engine and nothing but an engine, so that it may be replaced by another.
// If not, and the directory is there and not empty, `reason` says what else it holds.
bool is_engine_dir(const std::filesystem::path& dir, std::string& reason);

class StagingDir {
 public:
  // Makes `.<name>.building-<pid>` beside `target`, and the parents that are missing. Removes those
  // of builds to the same target that were killed. Throws InvalidArgument if the target may not be
  // replaced or its parent not be written.
  explicit StagingDir(const std::filesystem::path& target);
  // Unless published: removes what was written and the parents that were made.
  ~StagingDir();
  StagingDir(const StagingDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& target() const { return target_; }

  // Puts the directory in the target's place, durably. The target's old contents go last: at every
  // moment the target is either the old directory or the new one.
  void publish();

 private:
  void make_parents();
  void remove_stale() const;

  std::filesystem::path target_;
  std::filesystem::path path_;
  std::vector<std::filesystem::path> made_parents_;
  int lock_ = -1;  // held while the build lives, so that others see that it does
  bool published_ = false;
};

}  // namespace ostro::checkpoint
