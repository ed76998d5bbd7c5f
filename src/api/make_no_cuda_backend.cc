#include "api/make_cuda_backend.h"

namespace ostro::api {

bool built_with_cuda() { return false; }

std::vector<std::string> cuda_devices() { return {}; }

std::unique_ptr<ops::Backend> make_cuda_backend(int) {
  OSTRO_THROW(Unsupported, "this build has no CUDA backend; it has: cpu");
}

std::unique_ptr<ops::Backend> find_cuda_backend(const Log&, int) { return nullptr; }

std::string nccl_version() { OSTRO_THROW(Unsupported, "this build has no CUDA and no NCCL"); }

GroupMaker make_nccl_groups(ops::Backend&, int, double, PeerMemory, const Log&) {
  OSTRO_THROW(Unsupported, "this build has no CUDA and no NCCL");
}

}  // namespace ostro::api
