// Executors over ranks that somebody else has started.
//
//   run_on_ranks(flags, 0, [&](Session& s) {
//     Executor executor = api::make_executor(s.rank, s.config, {.max_queue_size = 512});
//     serve(executor);
//     executor.shutdown(Drain::yes);
//     api::rethrow_failure(executor);
//   });
#pragma once

#include "engine/rank.h"
#include "model/engine_config.h"
#include "ostro/executor.h"

namespace ostro::api {

// `rank` leads; it must outlive the executor, and nobody else may use it meanwhile. Of the
// configuration only what does not concern loading counts: max_queue_size, capacity_policy,
// prefill_stall_s, kv_cache.block_reuse and iteration_statistics.
Executor make_executor(engine::Rank& rank, const model::EngineConfig&, const ExecutorConfig&);

// Throws what stopped the executor, if anything did, for the process's exit code.
void rethrow_failure(const Executor&);

}  // namespace ostro::api
