#include "checkpoint/staging.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/checksum.h"

namespace ostro::checkpoint {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void throw_unwritable(const fs::path& target, int error) {
  const std::string message = text("cannot write the engine to ", target.string(), ": ",
                                   system_error_text(error), "; choose another --output_dir");
  // A place where this user can never write is a wrong argument; the rest is the machine's fault.
  if (error == EACCES || error == EPERM || error == EROFS || error == ENOTDIR || error == ENOENT ||
      error == ENAMETOOLONG)
    OSTRO_THROW(InvalidArgument, message);
  OSTRO_THROW(DeviceError, message);
}

// The lock of a directory, -1 if another process has it, or a descriptor without a lock where the
// file system has none.
int lock_directory(const fs::path& dir) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(fd);
    return -1;
  }
  return fd;
}

void sync_directory(const fs::path& dir) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

// The configuration goes first: what is left of a removal that was interrupted is no engine.
void remove_directory(const fs::path& dir) {
  std::error_code ignored;
  fs::remove(dir / "config.json", ignored);
  fs::remove_all(dir, ignored);
}

// The process in ".name.building-123", or 0.
pid_t builder_of(std::string_view file_name, std::string_view prefix) {
  if (!file_name.starts_with(prefix)) return 0;
  file_name.remove_prefix(prefix.size());
  pid_t pid = 0;
  const auto [end, error] =
      std::from_chars(file_name.data(), file_name.data() + file_name.size(), pid);
  return error == std::errc{} && end == file_name.data() + file_name.size() && pid > 0 ? pid : 0;
}

fs::path resolve(const fs::path& output_dir) {
  std::error_code error;
  // Through symbolic links, so that the directory is replaced and not the link to it.
  fs::path path = fs::weakly_canonical(fs::absolute(output_dir), error);
  if (error) throw_unwritable(output_dir, error.value());
  if (!path.has_filename()) path = path.parent_path();
  OSTRO_REQUIRE(path.has_filename(), "--output_dir is ", output_dir.string(),
                ", which cannot be an engine; name a directory below it");
  return path;
}

}  // namespace

bool is_engine_dir(const fs::path& dir, std::string& reason) {
  std::set<std::string> known = {"config.json", kTacticsFileName};
  try {
    const auto config = parse_json(read_file(dir / "config.json", kLongestConfig), "config.json");
    if (!config.is_object() || !config.contains("format_version") || !config.contains("files")) {
      reason = "a config.json that is not an engine's";
      return false;
    }
    for (const auto& file : config.at("files")) known.insert(file.at("name").get<std::string>());
  } catch (const std::exception&) {
    reason = "files, but no engine's config.json";
    return false;
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(dir, error))
    if (!known.contains(entry.path().filename())) {
      reason =
          text("an engine and ", entry.path().filename().string(), ", which is not part of it");
      return false;
    }
  return true;
}

StagingDir::StagingDir(const fs::path& target) : target_(resolve(target)) {
  std::error_code error;
  const fs::file_status status = fs::status(target_, error);
  if (fs::exists(status)) {
    OSTRO_REQUIRE(fs::is_directory(status), "--output_dir ", target_.string(),
                  " is a file; name a directory");
    std::string reason;
    OSTRO_REQUIRE(fs::is_empty(target_, error) || is_engine_dir(target_, reason), "--output_dir ",
                  target_.string(), " holds ", reason,
                  "; nothing was changed: choose an empty or new directory");
  }
  make_parents();
  remove_stale();
  path_ = target_.parent_path() / text('.', target_.filename().string(), ".building-", ::getpid());
  if (::mkdir(path_.c_str(), 0755) != 0) {
    const int cause = errno;
    for (auto it = made_parents_.rbegin(); it != made_parents_.rend(); ++it) ::rmdir(it->c_str());
    OSTRO_REQUIRE(cause != EEXIST, "another build of this process writes to ", target_.string());
    throw_unwritable(target_, cause);
  }
  lock_ = lock_directory(path_);
}

StagingDir::~StagingDir() {
  if (!published_) {
    remove_directory(path_);
    for (auto it = made_parents_.rbegin(); it != made_parents_.rend(); ++it) ::rmdir(it->c_str());
  }
  if (lock_ >= 0) ::close(lock_);
}

void StagingDir::make_parents() {
  std::vector<fs::path> missing;
  std::error_code error;
  for (fs::path p = target_.parent_path(); !fs::exists(p, error) && p.has_relative_path();
       p = p.parent_path())
    missing.push_back(p);
  for (auto it = missing.rbegin(); it != missing.rend(); ++it) {
    if (::mkdir(it->c_str(), 0755) == 0) {
      made_parents_.push_back(*it);
    } else if (errno != EEXIST) {
      const int cause = errno;
      for (auto made = made_parents_.rbegin(); made != made_parents_.rend(); ++made)
        ::rmdir(made->c_str());
      throw_unwritable(target_, cause);
    }
  }
}

void StagingDir::remove_stale() const {
  const std::string prefix = text('.', target_.filename().string(), ".building-");
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(target_.parent_path(), error)) {
    const pid_t pid = builder_of(entry.path().filename().string(), prefix);
    if (pid == 0) continue;
    // Alive: a process of that number (in this container), or one that holds the lock (in another).
    const bool alive = pid != ::getpid() && (::kill(pid, 0) == 0 || errno != ESRCH);
    if (alive) continue;
    const int lock = lock_directory(entry.path());
    if (lock < 0) continue;
    remove_directory(entry.path());
    ::close(lock);
  }
}

void StagingDir::publish() {
  sync_directory(path_);
  const auto fail = [&] {
    OSTRO_THROW(DeviceError, "cannot rename ", path_.string(), " to ", target_.string(), ": ",
                system_error_text(errno));
  };
  // Also replaces an empty directory.
  if (::rename(path_.c_str(), target_.c_str()) != 0) {
    if (errno != ENOTEMPTY && errno != EEXIST) fail();
    std::string reason;
    OSTRO_REQUIRE(is_engine_dir(target_, reason), "--output_dir ", target_.string(), " now holds ",
                  reason, "; nothing was changed there");
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) {
      remove_directory(path_);  // now the old engine
    } else {
      // A file system that cannot exchange: for a moment there is no engine.
      if (errno != EINVAL && errno != ENOSYS) fail();
      const fs::path old = path_.string() + ".old";
      if (::rename(target_.c_str(), old.c_str()) != 0) fail();
      if (::rename(path_.c_str(), target_.c_str()) != 0) {
        const int cause = errno;
        ::rename(old.c_str(), target_.c_str());
        errno = cause;
        fail();
      }
      remove_directory(old);
    }
  }
  published_ = true;
  sync_directory(target_.parent_path());
}

}  // namespace ostro::checkpoint
