// Linear and ExpertMlp: which kernel takes a product, and its tiles.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/moe.h"
#include "backends/cuda/launch.h"
#include "quant/e4m3.h"

namespace ostro::cuda {
namespace {

bool aligned(const View& v) {
  constexpr std::uintptr_t kAlign = 16;
  return reinterpret_cast<std::uintptr_t>(v.data) % kAlign == 0 &&
         (v.rows <= 1 || std::uintptr_t(v.row_stride) * size_of(v.dtype) % kAlign == 0);
}
bool aligned(const quant::Weight& w) {
  return aligned(w.data) && (!w.is_int4() || aligned(w.scale));
}

WeightRef ref(const quant::Weight& w) {
  return {w.data.data, w.data.row_stride, static_cast<const float*>(w.scale.data)};
}

void set_output(GemmArgs& args, const View& y) {
  constexpr std::uintptr_t kPack = 4;
  const std::uintptr_t bytes = kPack * size_of(y.dtype);
  args.y = y.data;
  args.y_stride = y.row_stride;
  args.y_type = y.dtype;
  args.y_in_packs = reinterpret_cast<std::uintptr_t>(y.data) % bytes == 0 &&
                    std::uintptr_t(y.row_stride) % kPack == 0;
}

void set_input(GemmArgs& args, const View& x) {
  args.x = x.data;
  args.x_stride = x.row_stride;
}

void require_e4m3_activations(ops::Activations activations) {
  OSTRO_SUPPORTED(activations == ops::Activations::e4m3_per_token,
                  "e4m3 weights on CUDA are multiplied by activations that are rounded to e4m3");
}

void require_one_type(const quant::Weight& gate, const quant::Weight& up) {
  OSTRO_SUPPORTED(up.data.dtype == gate.data.dtype &&
                      (!gate.is_int4() || up.scale.row_stride == gate.scale.row_stride),
                  "ExpertMlp on CUDA has kernels for weights of one type, not for ",
                  describe(gate.data), " and ", describe(up.data));
}

void set_dense(GemmArgs& args, const quant::Weight& w, const quant::Weight* up, std::int64_t rows,
               int token_tile) {
  args.weight = ref(w);
  if (up) args.up_weight = ref(*up);
  args.max_tiles = int(ceil_div<std::int64_t>(rows, token_tile));
  args.slots = rows;
  args.n = int(w.n());
  args.k = int(w.k());
  args.w_scale_stride = w.scale.row_stride;
}

// y = x w^T, or its SwiGLU with `up`, for rows that all have one weight.
void dense(cudaStream_t stream, int processors, int tile, const View& x, const quant::Weight& w,
           const quant::Weight* up, const View& y) {
  if (x.rows == 0 || w.n() == 0) return;
  if (up) require_one_type(w, *up);
  const bool tensor_cores = tensor_cores_take(x, w.data.dtype, aligned(w) && (!up || aligned(*up)));
  Gemm g{};
  g.swiglu = up != nullptr;
  g.token_tile = tensor_cores ? tile : kSimpleTokenTile;
  set_input(g.args, x);
  set_dense(g.args, w, up, x.rows, g.token_tile);
  set_output(g.args, y);
  g.x_type = x.dtype;
  g.w_type = w.data.dtype;
  if (g.token_tile > kLargestTileWithoutTma)
    gemm_tma(stream, g, {{&g.args.weight, 1}, {&g.args.up_weight, 1}}, processors);
  else
    gemm(stream, g, tensor_cores, processors);
}

void set_input(GemmArgs& args, const E4m3Rows& x) {
  args.x = x.data;
  args.x_stride = x.stride;
  args.x_scale = x.scale;
  args.x_scale_stride = x.scale_stride;
}

void set_output(GemmArgs& args, const E4m3Rows& y) {
  args.y = y.data;
  args.y_stride = y.stride;
  args.y_type = DType::f8e4m3;
  args.y_scale = y.scale;
  args.y_scale_stride = y.scale_stride;
}

// The same for e4m3 x and weights. With `up` the result is e4m3 (`hidden`), else y.
void dense_e4m3(cudaStream_t stream, int processors, int tile, const E4m3Rows& x, std::int64_t rows,
                const quant::Weight& w, const quant::Weight* up, const E4m3Rows* hidden,
                const View& y) {
  if (rows == 0 || w.n() == 0) return;
  Gemm g{};
  g.swiglu = up != nullptr;
  const bool all_aligned = aligned(w) && (!up || aligned(*up));
  OSTRO_CHECK(tile != kDecodeTile || x.scale_stride == 0,
              "no scales of 128 columns in that kernel");
  g.token_tile = all_aligned ? tile : kUnalignedE4m3Tile;
  set_input(g.args, x);
  set_dense(g.args, w, up, rows, g.token_tile);
  hidden ? set_output(g.args, *hidden) : set_output(g.args, y);
  g.w_type = DType::f8e4m3;
  if (g.token_tile == kDecodeTile)
    gemm_e4m3_dense(stream, g, processors);
  else if (g.token_tile > kLargestTileWithoutTma)
    gemm_tma(stream, g, {{&g.args.weight, 1}, {&g.args.up_weight, 1}}, processors);
  else
    gemm_e4m3(stream, g, all_aligned);
}

// Hands out 16-byte aligned pieces of one allocation: once to count, then to cut.
class Carver {
 public:
  explicit Carver(char* memory) : memory_(memory) {}
  template <class T>
  T* take(std::int64_t elements) {
    const std::int64_t at = bytes_;
    bytes_ = round_up<std::int64_t>(bytes_ + elements * std::int64_t(sizeof(T)), 16);
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace

std::size_t CudaBackend::scratch_bytes() const {
  std::size_t bytes = 0;
  for (const Workspace* w :
       {&attention_parts_, &expert_index_, &expert_hidden_, &expert_out_, &x_e4m3_.data,
        &x_e4m3_.scale, &hidden_e4m3_.data, &hidden_e4m3_.scale})
    bytes += w->bytes();
  return bytes;
}

E4m3Rows CudaBackend::e4m3_rows(E4m3Memory& memory, std::int64_t rows, std::int64_t k,
                                std::int64_t groups) {
  const std::int64_t stride = round_up<std::int64_t>(k, 16);
  return {.data = memory.data.reserve<std::uint8_t>(rows * stride),
          .stride = stride,
          .scale = memory.scale.reserve<float>(rows * groups),
          .scale_stride = groups > 1 ? rows : 0};
}

E4m3Rows CudaBackend::quantised_slots(const ops::ExpertMlp& op, const ExpertGroups& groups,
                                      void* memory) {
  const std::int64_t tokens = op.x.rows, top_k = op.experts.cols;
  const E4m3Rows from = quantised(op.x);
  const E4m3Rows rows{
      .data = static_cast<std::uint8_t*>(memory),
      .stride = from.stride,
      .scale = reinterpret_cast<float*>(static_cast<char*>(memory) + tokens * top_k * from.stride),
      .scale_stride = 0};
  spread_rows(stream_,
              {.x = reinterpret_cast<const char*>(from.data),
               .x_row_bytes = from.stride,
               .x_scale = from.scale,
               .bytes = int(from.stride),
               .y = reinterpret_cast<char*>(rows.data),
               .y_row_bytes = rows.stride,
               .y_scale = rows.scale},
              groups.slot_of, tokens, top_k);
  return rows;
}

View CudaBackend::slot_rows(const ops::ExpertMlp& op, const ExpertGroups& groups, void* memory) {
  const auto size = std::int64_t(size_of(op.x.dtype));
  View rows = op.x;
  rows.rows = op.x.rows * op.experts.cols;
  rows.row_stride = round_up<std::int64_t>(op.x.cols * size, 16) / size;
  rows.data = memory;
  spread_rows(stream_,
              {.x = static_cast<const char*>(op.x.data),
               .x_row_bytes = op.x.row_stride * size,
               .x_scale = nullptr,
               .bytes = int(op.x.cols * size),
               .y = static_cast<char*>(memory),
               .y_row_bytes = rows.row_stride * size,
               .y_scale = nullptr},
              groups.slot_of, op.x.rows, op.experts.cols);
  return rows;
}

E4m3Rows CudaBackend::quantised(const View& x) {
  const View& from = rounded_.from;
  if (from && from.data == x.data && same_shape(from, x) && from.dtype == x.dtype &&
      (x.rows == 1 || from.row_stride == x.row_stride))
    return rounded_.rows;
  rounded_ = {};
  const E4m3Rows rows = e4m3_rows(x_e4m3_, x.rows, x.cols, 1);
  quantise_rows(stream_, x, rows);
  return rows;
}

void CudaBackend::enqueue(const ops::Linear& op) {
  begin(op.y);
  const int token_tile = tile(ops::product(op.w, false), op.x.rows);
  if (op.w.data.dtype != DType::f8e4m3)
    return dense(stream_, processors_, token_tile, op.x, op.w, nullptr, op.y);
  require_e4m3_activations(op.activations);
  if (op.x.rows == 0 || op.w.n() == 0) return;
  dense_e4m3(stream_, processors_, token_tile, quantised(op.x), op.x.rows, op.w, nullptr, nullptr,
             op.y);
}

void CudaBackend::enqueue(const ops::ExpertMlp& op) {
  begin(op.y);
  if (op.x.rows == 0 || op.x.cols == 0) return;
  if (op.local.empty()) {
    OSTRO_CUDA(cudaMemset2DAsync(op.y.data, std::size_t(op.y.row_stride) * sizeof(float), 0,
                                 std::size_t(op.y.cols) * sizeof(float), std::size_t(op.y.rows),
                                 stream_));
    return;
  }
  if (!op.experts) return dense_mlp(op);
  const auto group = [&](int token_tile, const ExpertGroups& groups) {
    group_by_expert(stream_, op, token_tile, groups);
  };
  if (op.experts.cols == 0) return;
  const ExpertSums sums = routed_sums(op, group);
  combine_experts(stream_, op, sums.slot_of, sums.out);
}

void CudaBackend::dense_mlp(const ops::ExpertMlp& op) {
  const ops::Expert& expert = op.local.front();
  const std::int64_t inter = expert.gate.n();
  const int up_tile = tile(ops::product(expert.gate, true), op.x.rows);
  const int down_tile = tile(ops::as_down(ops::product(expert.down, false)), op.x.rows);
  if (expert.gate.data.dtype == DType::f8e4m3) {
    require_e4m3_activations(op.activations);
    require_one_type(expert.gate, expert.up);
    require_one_type(expert.gate, expert.down);
    const E4m3Rows x = quantised(op.x);
    const E4m3Rows hidden =
        e4m3_rows(hidden_e4m3_, op.x.rows, inter, ceil_div(inter, quant::kE4m3Group));
    dense_e4m3(stream_, processors_, up_tile, x, op.x.rows, expert.gate, &expert.up, &hidden, {});
    dense_e4m3(stream_, processors_, down_tile, hidden, op.x.rows, expert.down, nullptr, nullptr,
               op.y);
    return;
  }
  const auto size = std::int64_t(size_of(op.x.dtype));
  const std::int64_t stride = round_up<std::int64_t>(inter * size, 16) / size;
  View hidden = matrix(expert_hidden_.reserve<char>(op.x.rows * stride * size), op.x.dtype,
                       op.x.rows, inter, Device::cuda);
  hidden.row_stride = stride;
  dense(stream_, processors_, up_tile, op.x, expert.gate, &expert.up, hidden);
  dense(stream_, processors_, down_tile, hidden, expert.down, nullptr, op.y);
}

ExpertSums CudaBackend::routed_sums(const ops::ExpertMlp& op, const GroupChoices& group) {
  const std::int64_t experts = std::int64_t(op.local.size());
  const ops::Expert& first = op.local.front();
  const DType weight_type = first.gate.data.dtype;
  const bool e4m3 = weight_type == DType::f8e4m3;
  if (e4m3) require_e4m3_activations(op.activations);
  const std::int64_t most = first.gate.scale ? kMostE4m3Experts : kMostExperts;
  OSTRO_SUPPORTED(experts <= most, "ExpertMlp on CUDA has kernels for up to ", most,
                  " local experts of ", name(weight_type), ", not for ", experts);
  bool all_aligned = true;
  for (const ops::Expert& e : op.local) {
    for (const auto& [w, like] :
         {std::pair{&e.gate, &first.gate}, {&e.up, &first.up}, {&e.down, &first.down}}) {
      OSTRO_SUPPORTED(w->data.dtype == weight_type && w->data.row_stride == like->data.row_stride &&
                          (!w->is_int4() || w->scale.row_stride == like->scale.row_stride),
                      "ExpertMlp on CUDA has kernels for experts of one type and row stride, not "
                      "for ",
                      describe(w->data), " beside ", describe(first.gate.data));
      all_aligned = all_aligned && aligned(*w);
    }
  }

  const std::int64_t tokens = op.x.rows, hidden = op.x.cols, inter = first.gate.n();
  const std::int64_t slots = tokens * op.experts.cols;
  const bool tensor_cores = !e4m3 && tensor_cores_take(op.x, weight_type, all_aligned);
  Gemm g{};
  const bool tiled = e4m3 ? all_aligned : tensor_cores;
  g.token_tile = tiled  ? tile(ops::product(first.gate, true, experts), tokens)
                 : e4m3 ? kUnalignedE4m3Tile
                        : kSimpleTokenTile;
  const bool persistent =
      tiled && !is_integer(weight_type) && persistent_takes(g.token_tile, experts, e4m3);
  const bool tma = !persistent && g.token_tile > kLargestTileWithoutTma;
  // The copy engine takes rows that follow one another.
  const bool in_slots = tma || (e4m3 && g.token_tile > kLargestTileWithoutTma);
  g.x_type = op.x.dtype;
  g.w_type = weight_type;
  const std::int64_t tiles = most_tiles(slots, experts, g.token_tile);

  ExpertGroups groups{};
  const auto carve = [&](Carver carver) {
    groups.gate = carver.take<WeightRef>(experts);
    groups.up = carver.take<WeightRef>(experts);
    groups.down = carver.take<WeightRef>(experts);
    groups.start = carver.take<std::int32_t>(experts + 1);
    groups.token = carver.take<std::int32_t>(slots);
    groups.slot_of = carver.take<std::int32_t>(slots);
    groups.tiles = carver.take<TokenTile>(tiles);
    groups.tile_count = carver.take<std::int32_t>(2);
    return carver.bytes();
  };
  carve(Carver(expert_index_.reserve<char>(carve(Carver(nullptr)))));
  group(g.token_tile, groups);

  std::vector<WeightRef> gate, up, down;
  for (const ops::Expert& e : op.local) {
    gate.push_back(ref(e.gate));
    up.push_back(ref(e.up));
    down.push_back(ref(e.down));
  }
  const auto multiply = [&] {
    if (tma)
      gemm_tma(stream_, g, {g.swiglu ? gate : down, up}, processors_);
    else if (persistent)
      gemm_persistent(stream_, g, {g.swiglu ? gate : down, up}, processors_);
    else
      e4m3 ? gemm_e4m3(stream_, g, all_aligned) : gemm(stream_, g, tensor_cores, processors_);
  };
  g.args.tiles = groups.tiles;
  g.args.tile_count = groups.tile_count;
  g.args.max_tiles = int(tiles);
  g.args.slots = slots;

  // What down gives. Until then, the rows of x for the copy engine, in the slots' order.
  constexpr std::int64_t kFloat = sizeof(float);
  const std::int64_t x_size = e4m3 ? 1 : std::int64_t(size_of(op.x.dtype));
  char* const out = expert_out_.reserve<char>(
      slots * std::max(hidden * kFloat, round_up<std::int64_t>(hidden * x_size, 16) + kFloat));

  // h = swiglu(gate x, up x) of every slot.
  View h;
  E4m3Rows h_e4m3{};
  if (e4m3) {
    h_e4m3 = e4m3_rows(hidden_e4m3_, slots, inter, ceil_div(inter, quant::kE4m3Group));
    set_input(g.args, in_slots ? quantised_slots(op, groups, out) : quantised(op.x));
    set_output(g.args, h_e4m3);
  } else {
    const auto size = std::int64_t(size_of(op.x.dtype));
    const std::int64_t stride = round_up<std::int64_t>(inter * size, 16) / size;
    h = matrix(expert_hidden_.reserve<char>(slots * stride * size), op.x.dtype, slots, inter,
               Device::cuda);
    h.row_stride = stride;
    set_input(g.args, in_slots ? slot_rows(op, groups, out) : op.x);
    set_output(g.args, h);
  }
  g.args.rows = in_slots ? nullptr : groups.token;
  g.args.weights = groups.gate;
  g.args.up_weights = groups.up;
  g.args.w_scale_stride = first.gate.scale.row_stride;
  g.args.n = int(inter);
  g.args.k = int(hidden);
  g.swiglu = true;
  if (inter > 0) multiply();

  // The down projection of every slot.
  e4m3 ? set_input(g.args, h_e4m3) : set_input(g.args, h);
  set_output(g.args, matrix(out, DType::f32, slots, hidden, Device::cuda));
  g.args.rows = nullptr;
  g.args.weights = groups.down;
  g.args.w_scale_stride = first.down.scale.row_stride;
  g.args.n = int(hidden);
  g.args.k = int(inter);
  g.swiglu = false;
  g.listed = inter > 0;
  multiply();
  return {.slot_of = groups.slot_of, .out = reinterpret_cast<const float*>(out)};
}

}  // namespace ostro::cuda
