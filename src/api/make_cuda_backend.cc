#include "api/make_cuda_backend.h"

#include "backends/cuda/backend.h"
#include "comm/nccl/transport.h"

namespace ostro::api {

bool built_with_cuda() { return true; }

std::vector<std::string> cuda_devices() { return cuda::device_identities(); }

std::unique_ptr<ops::Backend> make_cuda_backend(int device) { return cuda::make_backend(device); }

std::unique_ptr<ops::Backend> find_cuda_backend(const Log& log, int device) {
  if (!cuda::has_driver()) return nullptr;
  try {
    return cuda::make_backend(device);
  } catch (const Unsupported& e) {
    log.warning("the GPU is not used: ", e.what());
    return nullptr;
  }
}

std::string nccl_version() { return comm::nccl::version_text(comm::nccl::load().version); }

GroupMaker make_nccl_groups(ops::Backend& gpu, int rank, double stall_seconds,
                            PeerMemory peer_memory, const Log& log) {
  using Use = comm::nccl::UsePeerMemory;
  auto transport = std::make_shared<comm::nccl::Transport>(
      gpu, comm::nccl::load(),
      comm::nccl::Options{.rank = rank,
                          .stall_seconds = stall_seconds,
                          .peer_memory = peer_memory == PeerMemory::never    ? Use::never
                                         : peer_memory == PeerMemory::always ? Use::always
                                                                             : Use::where_possible,
                          .log = log});
  return [transport](std::unique_ptr<comm::Communicator> host) {
    return comm::nccl::make_group(transport, std::move(host));
  };
}

}  // namespace ostro::api
