#include "comm/nccl/library.h"

#include <dlfcn.h>

#include "base/error.h"

namespace ostro::comm::nccl {
namespace {

constexpr const char* kAdvice =
    "install NCCL (libnccl2, or the Python wheel nvidia-nccl-cu13 with its lib folder in "
    "LD_LIBRARY_PATH), or use --comm host";

// How versions have been numbered since 2.9.
constexpr int kMajor = 10000, kMinor = 100;

template <class Function>
void find(void* handle, const std::string& library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(handle, name));
  OSTRO_SUPPORTED(function, library, " has no ", name, ": ", kAdvice);
}

}  // namespace

std::string version_text(int version) {
  return text(version / kMajor, '.', version % kMajor / kMinor, '.', version % kMinor);
}

Library load(const std::string& name) {
  // For good: threads of its own may outlive the last group.
  void* const handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!handle) {
    const char* const reason = ::dlerror();
    OSTRO_THROW(Unsupported, "NCCL is not there (", reason ? reason : name, "): ", kAdvice);
  }
  Library l;
  Result (*get_version)(int*) = nullptr;
  find(handle, name, "ncclGetVersion", get_version);
  OSTRO_SUPPORTED(get_version(&l.version) == kSuccess && l.version >= kOldestVersion, name, " is ",
                  version_text(l.version), ", but at least ", version_text(kOldestVersion),
                  " is needed: ", kAdvice);
  find(handle, name, "ncclGetUniqueId", l.GetUniqueId);
  find(handle, name, "ncclCommInitRankConfig", l.CommInitRankConfig);
  find(handle, name, "ncclCommFinalize", l.CommFinalize);
  find(handle, name, "ncclCommDestroy", l.CommDestroy);
  find(handle, name, "ncclCommAbort", l.CommAbort);
  find(handle, name, "ncclCommGetAsyncError", l.CommGetAsyncError);
  find(handle, name, "ncclGetErrorString", l.GetErrorString);
  find(handle, name, "ncclGetLastError", l.GetLastError);
  find(handle, name, "ncclAllReduce", l.AllReduce);
  find(handle, name, "ncclAllGather", l.AllGather);
  find(handle, name, "ncclSend", l.Send);
  find(handle, name, "ncclRecv", l.Recv);
  find(handle, name, "ncclGroupStart", l.GroupStart);
  find(handle, name, "ncclGroupEnd", l.GroupEnd);
  return l;
}

}  // namespace ostro::comm::nccl
