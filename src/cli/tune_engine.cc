#include "cli/tune_engine.h"

#include <cstdio>

#include "api/make_cuda_backend.h"
#include "builder/tune.h"
#include "checkpoint/staging.h"
#include "cli/progress.h"
#include "model/tactics_file.h"

namespace ostro::cli {
namespace {

using builder::TunedProduct;

void print_row(const TunedProduct& t) {
  std::printf("%-9s %-32s %7lld %8d %8d %6.1f %%\n", t.name.c_str(), describe(t.product).c_str(),
              static_cast<long long>(t.tokens), t.planned, t.choice.tactic, 100 * t.choice.gain);
}

// What was chosen against the plan; returns how often.
std::size_t print_chosen(const std::vector<TunedProduct>& measured) {
  std::size_t chosen = 0;
  for (const TunedProduct& t : measured) {
    if (t.choice.tactic == t.planned) continue;
    if (chosen++ == 0)
      std::printf("%-9s %-32s %7s %8s %8s %8s\n", "", "product", "tokens", "planned", "chosen",
                  "gain");
    print_row(t);
  }
  return chosen;
}

}  // namespace

std::unique_ptr<ops::Backend> gpu_to_tune() {
  try {
    return api::make_cuda_backend();
  } catch (const Unsupported& e) {
    OSTRO_THROW(Unsupported, "--tune measures on the GPU that the engine is for: ", e.what());
  }
}

void tune_engine(const std::filesystem::path& engine_dir, const model::EngineConfig& config,
                 ops::Backend& gpu, const Log& log, bool quiet) {
  ProgressBar bar("tune", quiet);
  const std::vector<TunedProduct> measured =
      builder::tune(config, gpu, [&](double done, const TunedProduct& last) {
        bar.show(done, [&] { return text(last.name, ", ", last.tokens, " tokens"); });
      });
  bar.clear();
  for (const TunedProduct& t : measured)
    for (const ops::Tactic wrong : t.choice.wrong)
      log.warning("a tile of ", wrong, " tokens gives other bits than the plan's of ", t.planned,
                  " for ", t.name, ' ', describe(t.product), " of ", t.tokens,
                  " tokens: it is not used");
  model::write_tactics(engine_dir, gpu, builder::tactics_of(measured));
  const std::size_t chosen = print_chosen(measured);
  log.info("tuned ", (engine_dir / checkpoint::kTacticsFileName).string(), " on ",
           gpu.description(), ": of ", measured.size(), " products and numbers of tokens ", chosen,
           " are faster with another tile than the plan's; ", bar.seconds(), " s");
}

}  // namespace ostro::cli
