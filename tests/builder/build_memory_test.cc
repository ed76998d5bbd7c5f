// Building takes a few MB, however large the checkpoint is.
#include "builder/checkpoints.h"
#include "checkpoint/engine_reader.h"

namespace ostro::builder {
namespace {

using namespace ostro::testing;

// Lets VmHWM start again from what is resident now.
bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
  return bool(file.flush());
}

TEST(BuildMemory, StaysFarBelowTheModel) {
  constexpr std::int64_t kVocab = 65536, kHidden = 1024;  // 256 MB a table in float32
  TempDir dir;
  {
    SmallLlama llama;
    llama.config["vocab_size"] = kVocab;
    llama.config["hidden_size"] = kHidden;
    const std::string layer = "model.layers.0.";
    for (auto& [name, t] : llama.tensors)
      for (std::int64_t& n : t.shape) n = n == 8 ? kHidden : n == 10 ? kVocab : n;
    std::vector<checkpoint::TensorInfo> infos;
    for (const auto& [name, t] : llama.tensors)
      infos.push_back({.name = name, .type = checkpoint::StoredType::f32, .shape = t.shape});
    const std::string header = checkpoint::safetensors_header(infos, {});
    write_bytes(dir / "config.json", llama.config.dump());
    write_bytes(dir / "model.safetensors", header);
    std::uint64_t bytes = header.size();
    for (const auto& info : infos)
      bytes += std::uint64_t(*checkpoint::element_count(info.shape)) * 4;
    fs::resize_file(dir / "model.safetensors", bytes);  // zeros, without a block on the disk
  }
  const checkpoint::Checkpoint source(dir.path());
  if (!reset_peak()) GTEST_SKIP() << "no /proc/self/clear_refs here";
  const std::uint64_t before = peak_memory_bytes();
  for (const auto& mapping : {model::Mapping{}, model::Mapping{.tp = 2, .moe_tp = 2}}) {
    auto options = options_for(model_of(source), dir / "engine", mapping);
    options.config.model.dtype = mapping.tp == 1 ? DType::f32 : DType::bf16;
    options.workers = 2;
    EXPECT_GT(build(options, &source).bytes, 256u << 20);
    EXPECT_LT(peak_memory_bytes() - before, 32u << 20);
  }
  checkpoint::EngineReader(dir / "engine").verify();
  EXPECT_LT(peak_memory_bytes() - before, 64u << 20);
}

}  // namespace
}  // namespace ostro::builder
