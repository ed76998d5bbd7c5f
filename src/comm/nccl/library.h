// The part of NCCL's interface that Ostro calls, found when the program runs: it starts where there
// is no NCCL, and needs no header of it to be built. tests/comm/nccl compares these declarations
// with nccl.h where that is installed.
#pragma once

#include <climits>
#include <cstddef>
#include <string>

struct ncclComm;     // NCCL's own
struct CUstream_st;  // cudaStream_t points to one

namespace ostro::comm::nccl {

using Comm = ::ncclComm*;
using Stream = ::CUstream_st*;

// ncclUniqueId.
struct UniqueId {
  char bytes[128];
};

// ncclResult_t, those that Ostro tells apart.
using Result = int;
inline constexpr Result kSuccess = 0;
inline constexpr Result kInProgress = 7;

// ncclDataType_t and ncclRedOp_t.
inline constexpr int kUint8 = 1;
inline constexpr int kFloat32 = 7;
inline constexpr int kSum = 0;

// The beginning of ncclConfig_t, as it was in 2.17; every later NCCL takes it by its size.
struct Config {
  std::size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21700;
  int blocking = INT_MIN;  // INT_MIN: NCCL's own choice
  int cga_cluster_size = INT_MIN;
  int min_blocks = INT_MIN;
  int max_blocks = INT_MIN;
  const char* network = nullptr;
};

// The functions of one loaded NCCL, by the names of its manual.
struct Library {
  int version = 0;  // 22809: 2.28.9

  Result (*GetUniqueId)(UniqueId*) = nullptr;
  Result (*CommInitRankConfig)(Comm*, int ranks, UniqueId, int rank, Config*) = nullptr;
  Result (*CommFinalize)(Comm) = nullptr;
  Result (*CommDestroy)(Comm) = nullptr;
  Result (*CommAbort)(Comm) = nullptr;
  Result (*CommGetAsyncError)(Comm, Result*) = nullptr;
  const char* (*GetErrorString)(Result) = nullptr;
  const char* (*GetLastError)(Comm) = nullptr;
  Result (*AllReduce)(const void*, void*, std::size_t, int type, int op, Comm, Stream) = nullptr;
  Result (*AllGather)(const void*, void*, std::size_t, int type, Comm, Stream) = nullptr;
  Result (*Send)(const void*, std::size_t, int type, int to, Comm, Stream) = nullptr;
  Result (*Recv)(void*, std::size_t, int type, int from, Comm, Stream) = nullptr;
  Result (*GroupStart)() = nullptr;
  Result (*GroupEnd)() = nullptr;
};

// Groups that do not block are of 2.14, the last parts of Config of 2.17.
inline constexpr int kOldestVersion = 21700;

// Loads `name`, from where the system's loader looks. Throws Unsupported, saying what to install or
// set, if it is not there, lacks a function, or is older than kOldestVersion.
Library load(const std::string& name = "libnccl.so.2");

// "2.28.9".
std::string version_text(int version);

}  // namespace ostro::comm::nccl
