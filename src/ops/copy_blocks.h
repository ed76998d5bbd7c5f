#pragma once

#include "tensor/view.h"

namespace ostro::ops {

// Copies whole blocks of a KV cache, all layers' keys and values at once: what a sequence that has
// been forked needs before it writes to a block that others read (copy on write).
//   for each copy (from, to) and each plane p, r < block_rows:
//     kv[(p * blocks + to) * block_rows + r, :] = kv[(p * blocks + from) * block_rows + r, :]
//
//   kv      [planes * blocks * block_rows, n]  any  in/out: KvCache::k and v (attention.h) of every
//                                              layer, one after the other
//   copies  [copies, 2]  i32  in: from, to; each in [0, blocks). No block is written twice, nor
//                             written and read.
//   planes      keys and values of each layer: 2 * layers
//   block_rows  rows that a block takes of a plane: kv_heads * block_tokens
//
// copies = 0 does nothing. Exact. Kwon et al. 2023, arXiv:2309.06180, section 4.4.
struct CopyBlocks {
  View kv;
  View copies;
  std::int64_t planes = 0;
  std::int64_t block_rows = 0;

  std::int64_t blocks() const { return kv.rows / (planes * block_rows); }
};

void check(const CopyBlocks&);
void reference(const CopyBlocks&);

}  // namespace ostro::ops
