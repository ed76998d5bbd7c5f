// What the kernel files of one instruction set offer to table.cc.
#pragma once

#include "backends/cpu/kernels/kernels.h"

namespace ostro::cpu::OSTRO_ISA {

void gemm(const Gemm&);
bool packs(Element x, Element w);
std::int64_t gemm_scratch_bytes(std::int64_t m, std::int64_t k);
#ifdef __AMX_BF16__
void gemm_tiles(const Gemm&);  // of types that packs() tells, k > 0
std::int64_t gemm_tiles_scratch_bytes(std::int64_t m, std::int64_t k);
std::int64_t packed_bytes(std::int64_t m, std::int64_t k);
void pack_rows(const PackRows&);
#endif

void store_rows(const StoreRows&);
void round_e4m3(const RoundE4m3&);
void narrow_e4m3(const void* from, Element type, void* to, std::int64_t n);
void widen_row(const void* from, Element type, float* to, std::int64_t n);
void swiglu(const SwiGlu&);
void combine(const Combine&);
void route(const RouteRow&);
void add_rms_norm(const NormRow&);
void rotate_heads(const RotateHeads&);

void attention(const Attention&);
void attention_merge(const AttentionMerge&);
std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t head_dim);

void read_memory(const void* from, std::int64_t bytes);
double peak_multiply_add(Element type, std::int64_t steps);

}  // namespace ostro::cpu::OSTRO_ISA
