#include "comm/nccl/library.h"

#include <gtest/gtest.h>

#include <cstddef>

#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

#include "base/error.h"

namespace ostro::comm::nccl {
namespace {

std::string message_of_load(const std::string& name) {
  try {
    load(name);
  } catch (const Unsupported& e) {
    return e.what();
  }
  return "nothing is thrown";
}

TEST(NcclLibrary, SaysWhatToInstallWhereThereIsNone) {
  const std::string message = message_of_load("libnccl-that-is-not-there.so.2");
  EXPECT_EQ(message.find("NCCL is not there (libnccl-that-is-not-there.so.2: "), 0u) << message;
  for (const char* advice : {"libnccl2", "nvidia-nccl-cu13", "LD_LIBRARY_PATH", "--comm host"})
    EXPECT_NE(message.find(advice), std::string::npos) << message;
}

TEST(NcclLibrary, RefusesOneThatIsTooOld) {
  EXPECT_EQ(message_of_load(OSTRO_OLD_NCCL)
                .find(text(OSTRO_OLD_NCCL, " is 2.16.5, but at least ",
                           "2.17.0 is needed: install NCCL")),
            0u)
      << message_of_load(OSTRO_OLD_NCCL);
}

TEST(NcclLibrary, NamesTheFunctionThatIsMissing) {
  EXPECT_EQ(
      message_of_load(OSTRO_POOR_NCCL).find(text(OSTRO_POOR_NCCL, " has no ncclGetUniqueId: ")), 0u)
      << message_of_load(OSTRO_POOR_NCCL);
}

TEST(NcclLibrary, FindsAllItCallsInTheOneThatIsHere) {
  try {
    const Library library = load();
    EXPECT_GE(library.version, kOldestVersion);
    EXPECT_NE(library.GroupEnd, nullptr);
  } catch (const Unsupported& e) {
    GTEST_SKIP() << e.what();
  }
}

TEST(NcclLibrary, WritesVersionsAsNcclDoes) {
  EXPECT_EQ(version_text(22809), "2.28.9");
  EXPECT_EQ(version_text(21700), "2.17.0");
}

#ifdef NCCL_VERSION_CODE
// The declarations here are NCCL's.
TEST(NcclLibrary, DeclaresWhatTheHeaderDoes) {
  static_assert(std::is_same_v<Comm, ncclComm_t>);
  static_assert(std::is_same_v<Stream, cudaStream_t>);
  static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
  static_assert(sizeof(Result) == sizeof(ncclResult_t));
  static_assert(offsetof(Config, size) == offsetof(ncclConfig_t, size));
  static_assert(offsetof(Config, magic) == offsetof(ncclConfig_t, magic));
  static_assert(offsetof(Config, version) == offsetof(ncclConfig_t, version));
  static_assert(offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking));
  static_assert(offsetof(Config, cga_cluster_size) == offsetof(ncclConfig_t, cgaClusterSize));
  static_assert(offsetof(Config, min_blocks) == offsetof(ncclConfig_t, minCTAs));
  static_assert(offsetof(Config, max_blocks) == offsetof(ncclConfig_t, maxCTAs));
  static_assert(offsetof(Config, network) == offsetof(ncclConfig_t, netName));
  static_assert(sizeof(Config) <= sizeof(ncclConfig_t));
  const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  const Config ours;
  EXPECT_EQ(ours.magic, theirs.magic);
  EXPECT_EQ(ours.blocking, theirs.blocking);
  EXPECT_EQ(ours.cga_cluster_size, theirs.cgaClusterSize);
  EXPECT_EQ(ours.network, theirs.netName);
  EXPECT_EQ(kSuccess, int(ncclSuccess));
  EXPECT_EQ(kInProgress, int(ncclInProgress));
  EXPECT_EQ(kUint8, int(ncclUint8));
  EXPECT_EQ(kFloat32, int(ncclFloat32));
  EXPECT_EQ(kSum, int(ncclSum));
}
#endif

}  // namespace
}  // namespace ostro::comm::nccl
