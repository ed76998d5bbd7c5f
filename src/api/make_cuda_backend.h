// The CUDA backend of this build: make_cuda_backend.cc where it is built, make_no_cuda_backend.cc
// where it is not.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "comm/communicator.h"
#include "ops/backend.h"

namespace ostro::api {

bool built_with_cuda();

// An identity for each GPU that this process may use, the same in every process of the host.
std::vector<std::string> cuda_devices();

// A GPU. Throws Unsupported where it cannot be used, and in a build without CUDA.
std::unique_ptr<ops::Backend> make_cuda_backend(int device = 0);

// A GPU, or null; where there is a driver the log says why no GPU is used.
std::unique_ptr<ops::Backend> find_cuda_backend(const Log& log, int device = 0);

// The version of the NCCL that is there. Throws Unsupported, saying what to install, if there is
// none, and in a build without CUDA.
std::string nccl_version();

// Whether sums go through memory that GPUs of a host map of each other: comm/nccl/transport.h.
enum class PeerMemory { never, where_possible, always };

// Makes groups of device memory over NCCL (comm/nccl/transport.h) of groups of host memory; `gpu`,
// a GPU, must outlive it and them. `rank` is this process's among all. The log says how each group
// talks.
using GroupMaker =
    std::function<std::unique_ptr<comm::Communicator>(std::unique_ptr<comm::Communicator>)>;
GroupMaker make_nccl_groups(ops::Backend& gpu, int rank, double stall_seconds, PeerMemory,
                            const Log&);

}  // namespace ostro::api
