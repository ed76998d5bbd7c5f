// What every transport checks when a call enters it: InternalError, with the values, if the caller
// broke the contract of comm/communicator.h.
#pragma once

#include <cstddef>
#include <span>

#include "tensor/view.h"

namespace ostro::comm {

void check_all_reduce_sum(const View& data);
void check_all_gather_columns(const View& part, const View& whole, int rank, int ranks);
void check_peer(const char* call, int peer, int rank, int ranks);
void check_message(const char* call, const View& data, int peer, int rank, int ranks);
void check_root(int root, int ranks);
void check_color(int color);

}  // namespace ostro::comm
