// How many registers the threads of a warpgroup have (PTX ISA, "setmaxnreg"; needs sm_90a). All
// warps of the warpgroup execute it, at the start of a role.
#pragma once

namespace ostro::cuda::ptx {

template <int kRegisters>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace ostro::cuda::ptx
