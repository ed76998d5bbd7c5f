// What every transport must do, as calls that all ranks of `world` make together. A rank that sees
// something else throws InternalError with the case and the values.
#pragma once

#include "comm/communicator.h"

namespace ostro::comm::testing {

void sums_in_rank_order(Communicator& world);
void sums_a_row_alike_in_any_matrix(Communicator& world);
void gathers_columns(Communicator& world);
void passes_messages_around(Communicator& world);
void goes_on_after_buffered_sends(Communicator& world);
void waits_for_a_message(Communicator& world);
void broadcasts_from_every_root(Communicator& world);
void holds_at_the_barrier(Communicator& world);
void splits_into_groups(Communicator& world);
void keeps_groups_apart(Communicator& world);

// All of the above.
void check_collectives(Communicator& world);

}  // namespace ostro::comm::testing
