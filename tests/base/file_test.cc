#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/temp_dir.h"

namespace ostro {
namespace {

namespace fs = std::filesystem;

class File : public ::testing::Test {
 protected:
  fs::path file(const std::string& content) {
    const fs::path path = dir_ / text("file", ++files_);
    FileWriter writer(path);
    writer.write(content);
    writer.close();
    return path;
  }

  template <class E, class F>
  static void expect_error(F&& f, const std::string& wanted) {
    try {
      f();
      ADD_FAILURE() << "no error; wanted: " << wanted;
    } catch (const E& e) {
      EXPECT_EQ(e.what(), wanted);
    }
  }

  TempDir dir_;
  int files_ = 0;
};

std::string content_of(const MappedFile& map) {
  return {reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size()};
}

// Until it is destroyed, this process cannot write files beyond `bytes`: a full disk in small. The
// signal that comes with it must be ignored for the write to fail with EFBIG.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : signal_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_);
  }

 private:
  rlimit before_;
  void (*signal_)(int);
};

TEST_F(File, IsReadWhole) {
  const std::string content = "a\0b\n" + std::string(70000, 'c');
  EXPECT_EQ(read_file(file(content)), content);
  EXPECT_EQ(read_file(file("")), "");
}

TEST_F(File, IsReadUpToALimit) {
  const fs::path path = file("12345");
  EXPECT_EQ(read_file(path, 5), "12345");
  expect_error<InvalidArgument>([&] { read_file(path, 4); },
                                path.string() + " has 5 bytes; at most 4 are read");
}

TEST_F(File, ThatCannotBeOpenedIsNamedWithTheCause) {
  const fs::path missing = dir_ / "missing";
  const std::string wanted =
      "cannot open " + missing.string() + ": No such file or directory (errno 2)";
  expect_error<InvalidArgument>([&] { read_file(missing); }, wanted);
  expect_error<InvalidArgument>([&] { MappedFile map(missing); }, wanted);
}

TEST_F(File, MustBeRegular) {
  const std::string wanted = dir_.path().string() + " is not a regular file";
  expect_error<InvalidArgument>([&] { read_file(dir_.path()); }, wanted);
  expect_error<InvalidArgument>([&] { MappedFile map(dir_.path()); }, wanted);
}

TEST_F(File, IsMapped) {
  std::string content;
  for (int i = 0; i < 30000; ++i) content += text(i, ' ');
  const fs::path path = file(content);
  const MappedFile map(path);
  EXPECT_EQ(map.path(), path);
  EXPECT_EQ(content_of(map), content);
}

TEST_F(File, ThatIsEmptyMapsToNothing) {
  const MappedFile map(file(""));
  EXPECT_TRUE(map.bytes().empty());
  map.will_need(0, 0);
  map.release(0, 100);
}

TEST_F(File, IsFoundBehindItsMap) {
  const std::string content(3 * 4096 + 5, 'x');
  const auto place = [](const MappedFile& map, std::size_t at, std::size_t bytes) {
    return file_behind(map.bytes().data() + at, bytes);
  };
  MappedFile map(file(content));
  const MappedFile other(file("other"));
  const auto end = place(map, 4097, content.size() - 4097);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->file->path(), map.path());
  EXPECT_EQ(end->offset, 4097u);
  EXPECT_EQ(place(other, 0, 5)->file->path(), other.path());
  EXPECT_FALSE(place(map, 4097, content.size() - 4096));  // one byte beyond the end
  EXPECT_FALSE(file_behind(content.data(), 1));           // not mapped

  const std::byte* const gone = map.bytes().data();
  map = MappedFile();
  EXPECT_FALSE(file_behind(gone, 1));
  std::string read(5, ' ');  // what was found outlives the map
  end->file->read_at(4097, std::as_writable_bytes(std::span(read)));
  EXPECT_EQ(read, "xxxxx");
}

TEST_F(File, EndsBeforeWhatIsRead) {
  const fs::path path = file("four");
  const ReadableFile four(path);
  std::vector<std::byte> to(3);
  four.read_at(1, to);
  expect_error<DeviceError>(
      [&] { four.read_at(2, to); },
      text("reading ", path.string(), ": it ends at byte 4, bytes up to 5 were wanted"));
}

TEST_F(File, MappedStaysReadableAfterHintsOfAnyRange) {
  const std::string content(3 * 4096 + 100, 'x');
  const MappedFile map(file(content));
  for (std::size_t offset : {0u, 1u, 4095u, 4096u, 12288u, 12387u, 12388u, 20000u})
    for (std::size_t bytes : {0u, 1u, 4096u, 9000u, 100000u}) {
      map.will_need(offset, bytes);
      map.release(offset, bytes);
      ASSERT_EQ(content_of(map), content) << offset << ' ' << bytes;
    }
}

// Whole pages inside the range leave memory; those that it only touches stay.
TEST_F(File, ReleaseDropsOnlyWholePages) {
  const MappedFile map(file(std::string(8 * 4096, 'x')));
  const auto resident = [&] {  // Rss of this mapping, in pages
    std::uint64_t pages = 0;
    FILE* maps = std::fopen("/proc/self/smaps", "r");
    std::vector<char> line(4096);
    bool here = false;
    while (std::fgets(line.data(), int(line.size()), maps)) {
      if (std::strstr(line.data(), map.path().c_str())) here = true;
      unsigned long kilobytes = 0;
      if (here && std::sscanf(line.data(), "Rss: %lu kB", &kilobytes) == 1) {
        pages = kilobytes / 4;
        break;
      }
    }
    std::fclose(maps);
    return pages;
  };
  const auto touch = [&] {
    for (std::byte b : map.bytes()) EXPECT_EQ(b, std::byte('x'));
  };
  touch();
  ASSERT_EQ(resident(), 8u);
  map.release(1, 4 * 4096);  // pages 1, 2 and 3
  EXPECT_EQ(resident(), 5u);
  touch();
  map.release(0, 8 * 4096);
  EXPECT_EQ(resident(), 0u);
}

TEST_F(File, MapMoves) {
  MappedFile a(file("first")), b(file("second"));
  MappedFile moved(std::move(a));
  EXPECT_EQ(content_of(moved), "first");
  EXPECT_TRUE(a.bytes().empty());
  b = std::move(moved);
  EXPECT_EQ(content_of(b), "first");
}

TEST_F(File, IsWrittenFromFrontToBackAndPatched) {
  const fs::path path = dir_ / "out";
  FileWriter writer(path);
  writer.write("header..");
  writer.write(std::string(100000, 'x'));
  writer.write("end");
  EXPECT_EQ(writer.size(), 100011u);
  writer.write_at(0, std::as_bytes(std::span("HEAD", 4)));
  EXPECT_EQ(writer.size(), 100011u);
  writer.write("!");
  writer.close();
  EXPECT_EQ(read_file(path), "HEADer.." + std::string(100000, 'x') + "end!");
}

TEST_F(File, IsNeverOverwritten) {
  const fs::path path = file("precious");
  expect_error<DeviceError>([&] { FileWriter writer(path); },
                            "cannot create " + path.string() + ": File exists (errno 17)");
  EXPECT_EQ(read_file(path), "precious");
}

TEST_F(File, InAMissingFolderIsNotCreated) {
  const fs::path path = dir_ / "no" / "file";
  expect_error<DeviceError>(
      [&] { FileWriter writer(path); },
      "cannot create " + path.string() + ": No such file or directory (errno 2)");
}

TEST_F(File, OnAFullDiskFailsAtTheWrite) {
  const fs::path path = dir_ / "full";
  FileWriter writer(path);
  const FileSizeLimit limit(8192);
  writer.write(std::string(8000, 'x'));
  // The first 192 bytes are accepted: a short write, which must be continued to see the error.
  expect_error<DeviceError>(
      [&] { writer.write(std::string(1000, 'y')); },
      "writing " + path.string() + " at byte 8192: File too large (errno 27)");
}

TEST(PeakMemory, GrowsWithUse) {
  const std::uint64_t before = peak_memory_bytes();
  EXPECT_GT(before, 0u);
  const std::vector<char> touched(std::size_t{64} << 20, 'x');
  EXPECT_GE(peak_memory_bytes(), touched.size());
}

}  // namespace
}  // namespace ostro
