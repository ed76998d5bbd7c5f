#include "checkpoint/engine_writer.h"

#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <thread>

#include "checkpoint/engines.h"

namespace ostro::checkpoint {
namespace {

using namespace ostro::testing;

const std::vector<EngineTensor> kTensors = {whole("a", 3, 4), whole("bb", 2, 5)};

TEST(EngineWriter, WritesADirectoryThatReadsBack) {
  TempDir dir;
  write_engine(dir / "new/deep/engine", {kTensors});
  EXPECT_EQ(names_in(dir / "new/deep"), std::vector<std::string>{"engine"});
  EXPECT_EQ(names_in(dir / "new/deep/engine"),
            (std::vector<std::string>{"config.json", "rank0.safetensors"}));
  const EngineReader engine(dir / "new/deep/engine");
  EXPECT_NE(engine.config_text().find("\"format_version\": 1"), std::string::npos);
  EXPECT_NE(engine.config_text().find("\"layers\": 1"), std::string::npos);
  engine.verify();
}

TEST(EngineWriter, RanksAreWrittenSideBySide) {
  TempDir dir;
  {
    EngineWriter writer(dir / "engine");
    std::vector<std::thread> threads;
    for (int r = 0; r < 4; ++r)
      threads.emplace_back([&writer, r] {
        RankWriter& rank = writer.rank(r, kTensors);
        append_all(rank, kTensors);
        rank.finish();
      });
    for (std::thread& t : threads) t.join();
    writer.commit("{}");
  }
  const EngineReader engine(dir / "engine");
  EXPECT_EQ(engine.ranks(), 4);
  engine.verify();
}

TEST(EngineWriter, WithoutCommitNothingIsLeft) {
  TempDir dir;
  {
    EngineWriter writer(dir / "new/deep/engine");
    RankWriter& rank = writer.rank(0, kTensors);
    append_all(rank, kTensors);
    rank.finish();
    EXPECT_EQ(names_in(dir / "new/deep").size(), 1u);
  }
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(EngineWriter, ReplacesAnEngineAndKeepsItUntilTheLastMoment) {
  TempDir dir;
  write_engine(dir / "engine", {kTensors, kTensors});
  { EngineWriter abandoned(dir / "engine"); }
  EXPECT_EQ(EngineReader(dir / "engine").ranks(), 2);
  write_engine(dir / "engine", {kTensors});
  EXPECT_EQ(EngineReader(dir / "engine").ranks(), 1);
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"engine"});
  EXPECT_EQ(names_in(dir / "engine").size(), 2u);

  // Through a link, the directory is replaced and the link stays.
  fs::create_directory_symlink(dir / "engine", dir / "link");
  write_engine(dir / "link", {kTensors, kTensors});
  EXPECT_TRUE(fs::is_symlink(dir / "link"));
  EXPECT_EQ(EngineReader(dir / "engine").ranks(), 2);

  fs::create_directory(dir / "empty");
  write_engine(dir / "empty", {kTensors});
  EXPECT_EQ(EngineReader(dir / "empty").ranks(), 1);
}

TEST(EngineWriter, RefusesADirectoryThatHoldsAnythingElse) {
  TempDir dir;
  fs::create_directory(dir / "photos");
  write_bytes(dir / "photos/cat.jpg", "x");
  const auto refused = [](const fs::path& path, const std::vector<std::string>& parts) {
    expect_error<InvalidArgument>([&] { EngineWriter writer(path); }, parts);
  };
  refused(dir / "photos",
          {"photos holds files, but no engine's config.json", "nothing was changed"});
  write_bytes(dir / "photos/config.json", R"({"model_type":"mixtral"})");
  refused(dir / "photos", {"a config.json that is not an engine's"});
  EXPECT_EQ(names_in(dir / "photos").size(), 2u);

  write_engine(dir / "engine", {kTensors});
  write_bytes(dir / "engine/tokenizer.model", "x");
  refused(dir / "engine/", {"an engine and tokenizer.model, which is not part of it"});
  EXPECT_EQ(names_in(dir / "engine").size(), 3u);

  refused(dir / "photos/cat.jpg", {"cat.jpg is a file; name a directory"});
  refused(dir / "photos/cat.jpg/engine", {"cannot write the engine to", "Not a directory"});
  refused("/", {"cannot be an engine"});
}

TEST(EngineWriter, RefusesAPlaceThatCannotBeWritten) {
  const auto refused = [] {
    expect_error<InvalidArgument>([] { EngineWriter writer("/proc/ostro/engine"); },
                                  {"cannot write the engine to /proc/ostro/engine"});
  };
  refused();
  if (::geteuid() == 0) return;  // root may write anywhere else
  TempDir dir;
  fs::permissions(dir.path(), fs::perms::owner_read | fs::perms::owner_exec);
  expect_error<InvalidArgument>([&] { EngineWriter writer(dir / "engine"); },
                                {"cannot write the engine to", "Permission denied"});
  fs::permissions(dir.path(), fs::perms::owner_all);
}

TEST(EngineWriter, AFullDiskIsADeviceErrorAndLeavesNothing) {
  TempDir dir;
  expect_error<DeviceError>([&] { EngineWriter(dir / "engine").require_space(1ull << 60); },
                            {"the engine takes 1152921504606846976 bytes", "free"});
  // The kernel refuses to let a file grow: the same path as a disk without space.
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{64 << 10, 64 << 10};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 1;
    try {
      const std::vector<EngineTensor> big = {whole("big", 1000, 100)};
      write_engine(dir / "engine", {big});
    } catch (const DeviceError& e) {
      const std::string_view what = e.what();
      const bool named = what.find("rank0.safetensors at byte 65536") != std::string_view::npos;
      code = named ? 0 : 2;
    } catch (...) {
      code = 3;
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(names_in(dir.path()).empty());
}

TEST(EngineWriter, AKilledBuildLeavesNoEngineAndTheNextOneCleansUp) {
  TempDir dir;
  write_engine(dir / "engine", {kTensors, kTensors});
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    EngineWriter writer(dir / "engine");
    RankWriter& rank = writer.rank(0, kTensors);
    append_all(rank, kTensors);
    [[maybe_unused]] const auto n = ::write(ready[1], "x", 1);
    ::pause();
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  // While it lives, another build to the same place leaves its directory alone.
  { EngineWriter other(dir / "engine"); }
  EXPECT_EQ(names_in(dir.path()).size(), 2u);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);

  const auto names = names_in(dir.path());
  ASSERT_EQ(names.size(), 2u);
  EXPECT_EQ(names[0], text(".engine.building-", child));
  EXPECT_THROW(EngineReader(dir / names[0]), InvalidArgument);
  EXPECT_EQ(EngineReader(dir / "engine").ranks(), 2);  // as it was
  write_engine(dir / "engine", {kTensors});
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"engine"});
}

TEST(EngineWriter, TwoBuildsOfOneProcessToOnePlaceDoNotMix) {
  TempDir dir;
  EngineWriter first(dir / "engine");
  expect_error<InvalidArgument>([&] { EngineWriter second(dir / "engine"); },
                                {"another build of this process writes to"});
}

TEST(EngineWriter, BytesThatDoNotFitTheTensorsAreBugs) {
  TempDir dir;
  EngineWriter writer(dir / "engine");
  RankWriter& rank = writer.rank(0, {whole("a", 1, 2)});
  EXPECT_THROW(rank.finish(), InternalError);
  EXPECT_THROW(rank.append(bytes_of("123456789")), InternalError);
  EXPECT_THROW(writer.commit("{}"), InternalError);
}

}  // namespace
}  // namespace ostro::checkpoint
