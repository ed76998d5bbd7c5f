#pragma once

#include "quant/weight.h"

namespace ostro::ops {

// Looks tokens up in a slice of the embedding table.
//   y[t,:] = table[ids[t] - first_row, :]   if first_row <= ids[t] < first_row + table.rows
//   y[t,:] = 0                              otherwise: the row is on another rank
//
//   ids    [1, tokens]    i32           in, each >= 0
//   table  [rows, hidden] f32|f16|bf16  in
//   y      [tokens, hidden] f32         out, not table
//
// first_row >= 0. tokens = 0 does nothing. Exact: values are widened, not computed.
struct Embed {
  View ids;
  View table;
  View y;
  std::int64_t first_row = 0;
};

void check(const Embed&);
void reference(const Embed&);

// Copies rows: y[i,:] = x[rows[i],:].
//
//   x     [tokens, n]  any     in
//   rows  [1, m]       i32     in, each in [0, tokens)
//   y     [m, n]       as x    out, not x
//
// m = 0 does nothing.
struct GatherRows {
  View x;
  View rows;
  View y;
};

void check(const GatherRows&);
void reference(const GatherRows&);

}  // namespace ostro::ops
