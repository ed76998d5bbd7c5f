// The table of one instruction set.
#include "backends/cpu/kernels/families.h"

namespace ostro::cpu::OSTRO_ISA {

const Kernels kernels = {
    .name = OSTRO_ISA_NAME,
#ifdef __AMX_BF16__
    .item_tokens = 512,
    .item_columns = 256,
    .token_unit = 32,
    .column_unit = 32,
    .packs = packs,
    .packed_bytes = packed_bytes,
    .pack_rows = pack_rows,
#else
    .item_tokens = 240,  // 40 tiles of 6
    .item_columns = kGemmStagedWeights,
    .token_unit = 1,
    .column_unit = 8,
    .packs = packs,
    .packed_bytes = nullptr,
    .pack_rows = nullptr,
#endif
    .gemm = gemm,
    .gemm_scratch_bytes = gemm_scratch_bytes,
    .store_rows = store_rows,
    .swiglu = swiglu,
    .combine = combine,
    .add_rms_norm = add_rms_norm,
    .route = route,
    .rotate_heads = rotate_heads,
    .attention = attention,
    .attention_merge = attention_merge,
    .attention_scratch_bytes = attention_scratch_bytes,
    .round_e4m3 = round_e4m3,
    .widen = widen_row,
    .narrow_e4m3 = narrow_e4m3,
    .read_memory = read_memory,
    .peak_multiply_add = peak_multiply_add,
};

}  // namespace ostro::cpu::OSTRO_ISA
