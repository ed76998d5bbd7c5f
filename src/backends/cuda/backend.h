#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace ostro::cuda {

// GPUs that this process may use; 0 where there is no driver.
int device_count();

// Whether an NVIDIA driver is installed, whatever GPUs it lets this process use.
bool has_driver();

// An identity for each of them (its UUID), the same in every process that may use it.
std::vector<std::string> device_identities();

// One GPU and one stream on it. Throws Unsupported, naming what was found and what is needed,
// without a driver for this build's CUDA, without such a device, or on one older than Hopper.
std::unique_ptr<ops::Backend> make_backend(int device = 0);

// Device memory that the kernels of such a backend keep for themselves.
std::size_t scratch_bytes(const ops::Backend& backend);

}  // namespace ostro::cuda
