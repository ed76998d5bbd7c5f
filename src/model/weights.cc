#include "model/weights.h"

#include <map>

namespace ostro::model {
namespace {

// Places tensors by name; the slices come from tensors_of(), so layout.cc alone knows the cuts.
class Loader {
 public:
  Loader(WeightSource& source, const std::vector<TensorSlice>& slices, ops::Backend& backend,
         Weights& to)
      : source_(source), backend_(backend), to_(to) {
    for (const TensorSlice& s : slices) slices_.emplace(s.name, &s);
  }

  // The row-wise stack of the named tensors.
  quant::Weight matrix(std::initializer_list<std::string> names) {
    std::vector<TensorSlice> parts;
    for (const std::string& name : names) {
      const auto it = slices_.find(name);
      OSTRO_CHECK(it != slices_.end(), "this rank holds no ", name);
      parts.push_back(*it->second);
    }
    const quant::Weight placed = source_.load(parts, backend_, to_.owned);
    to_.bytes += placed.data.bytes() + placed.scale.bytes();
    return placed;
  }

  View row(const std::string& name) { return matrix({name}).data; }

 private:
  WeightSource& source_;
  ops::Backend& backend_;
  Weights& to_;
  std::map<std::string, const TensorSlice*> slices_;
};

}  // namespace

quant::Weight EngineWeights::load(std::span<const TensorSlice> stacked, ops::Backend& backend,
                                  std::vector<Buffer>& owned) {
  std::vector<checkpoint::Slice> parts, scales;
  for (const TensorSlice& s : stacked) {
    parts.push_back({s.name, s.row_range, s.col_range});
    if (!is_quantised(s)) continue;
    const TensorSlice scale = scale_of(s);
    scales.push_back({scale.name, scale.row_range, scale.col_range});
  }
  checkpoint::HostMatrix data = engine_.read(parts), scale;
  if (!scales.empty()) {
    scale = engine_.read(scales);
    if (scale.view.cols == 1 && scale.view.dtype == DType::f32)
      scale.view = matrix(scale.view.data, scale.view.dtype, 1, scale.view.rows);
  }
  const quant::Weight placed = backend.place({.data = data.view, .scale = scale.view});
  const auto keep = [&](const View& view, checkpoint::HostMatrix& host) {
    if (view.data == host.view.data && host.owned.data()) owned.push_back(std::move(host.owned));
  };
  keep(placed.data, data);
  keep(placed.scale, scale);
  return placed;
}

Weights load_weights(WeightSource& source, const ModelConfig& config, const Mapping& mapping,
                     std::int64_t rank, ops::Backend& backend) {
  const RankShape shape = shape_of(config, mapping, rank);
  const std::vector<TensorSlice> slices = tensors_of(config, mapping, rank);
  Weights w;
  Loader load(source, slices, backend, w);

  if (shape.first_stage) w.embedding = load.row("embedding");
  for (std::int64_t i = shape.layers.begin; i < shape.layers.end; ++i) {
    const std::string name = text("layers.", i, '.');
    LayerWeights layer;
    layer.attention_norm = load.row(name + "attention_norm");
    layer.qkv = load.matrix({name + "q", name + "k", name + "v"});
    layer.o = load.matrix({name + "o"});
    layer.mlp_norm = load.row(name + "mlp_norm");
    if (config.experts > 0) layer.router = load.matrix({name + "router"});
    for (std::int64_t e = shape.experts.begin; e < shape.experts.end; ++e) {
      const std::string expert = text(name, "experts.", e, '.');
      layer.experts.push_back({.gate = load.matrix({expert + "gate"}),
                               .up = load.matrix({expert + "up"}),
                               .down = load.matrix({expert + "down"})});
    }
    w.layers.push_back(std::move(layer));
  }
  if (shape.last_stage) {
    w.norm = load.row("norm");
    w.lm_head = load.matrix({"lm_head"});
  }
  return w;
}

}  // namespace ostro::model
