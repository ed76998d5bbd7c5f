// Linear and ExpertMlp: which kernel takes a product, and its tiles.
#include <algorithm>
#include <vector>

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
// The kernel that multiplies int4 by e4m3 takes scales that lie anywhere.
bool aligned(const quant::Weight& w, bool scales = true) {
  return aligned(w.data) && (!scales || !w.is_int4() || aligned(w.scale));
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

// Products of int4 weights with x as e4m3, which prompts' kernel has for any number of tokens.
bool int4_by_e4m3(const quant::Weight& w, ops::Activations activations) {
  return w.is_int4() && activations == ops::Activations::e4m3_per_token;
}

void require_e4m3_activations(ops::Activations activations) {
  OSTRO_SUPPORTED(activations == ops::Activations::e4m3_per_token,
                  "e4m3 weights on CUDA are multiplied by activations that are rounded to e4m3");
}

void require_aligned_int4(bool aligned) {
  OSTRO_SUPPORTED(aligned,
                  "int4 weights whose rows do not start at 16 bytes have no CUDA kernel for "
                  "activations that are rounded to e4m3");
}

// `multiplied_with`: in one launch, so that scales lie alike too.
void require_one_type(const quant::Weight& gate, const quant::Weight& other,
                      bool multiplied_with = true) {
  OSTRO_SUPPORTED(
      other.data.dtype == gate.data.dtype &&
          (!multiplied_with || !gate.is_int4() || other.scale.row_stride == gate.scale.row_stride),
      "ExpertMlp on CUDA has kernels for weights of one type, not for ", describe(gate.data),
      " and ", describe(other.data));
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

// The same for e4m3 x and weights of e4m3 or int4. With `hidden`, of e4m3 weights and `up`, the
// result is e4m3, else y.
void dense_e4m3(cudaStream_t stream, int processors, int tile, const E4m3Rows& x, std::int64_t rows,
                const quant::Weight& w, const quant::Weight* up, const E4m3Rows* hidden,
                const View& y) {
  if (rows == 0 || w.n() == 0) return;
  if (up) require_one_type(w, *up);
  Gemm g{};
  g.swiglu = up != nullptr;
  const bool all_aligned = aligned(w, false) && (!up || aligned(*up, false));
  if (w.is_int4()) require_aligned_int4(all_aligned);
  const bool decode = tile == kDecodeTile && !w.is_int4();
  OSTRO_CHECK(!decode || x.scale_stride == 0, "no scales of 128 columns in that kernel");
  g.token_tile = all_aligned ? tile : kUnalignedE4m3Tile;
  set_input(g.args, x);
  set_dense(g.args, w, up, rows, g.token_tile);
  hidden ? set_output(g.args, *hidden) : set_output(g.args, y);
  g.x_type = DType::f8e4m3;
  g.w_type = w.data.dtype;
  if (decode && all_aligned)
    (rows <= kMostDenseTokens ? gemm_e4m3_dense : gemm_e4m3_wave)(stream, g, processors);
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

bool is_e4m3(const ops::ExpertMlp& op) { return op.local.front().gate.data.dtype == DType::f8e4m3; }
bool int4_by_e4m3(const ops::ExpertMlp& op) {
  return int4_by_e4m3(op.local.front().gate, op.activations);
}
bool takes_e4m3(const ops::ExpertMlp& op) { return is_e4m3(op) || int4_by_e4m3(op); }

void require_kernels(const ops::ExpertMlp& op) {
  const ops::Expert& first = op.local.front();
  const auto experts = std::int64_t(op.local.size());
  const DType type = first.gate.data.dtype;
  if (is_e4m3(op)) require_e4m3_activations(op.activations);
  static_assert(ops::kMostRoundedInt4Experts <= kMostTmaExperts);
  const std::int64_t most = int4_by_e4m3(op)   ? kMostTmaExperts
                            : first.gate.scale ? kMostE4m3Experts
                                               : kMostExperts;
  OSTRO_SUPPORTED(experts <= most, "ExpertMlp on CUDA has kernels for up to ", most,
                  " local experts of ", name(type), ", not for ", experts);
  for (const ops::Expert& e : op.local)
    for (const auto& [w, like] :
         {std::pair{&e.gate, &first.gate}, {&e.up, &first.up}, {&e.down, &first.down}})
      OSTRO_SUPPORTED(w->data.dtype == type && w->data.row_stride == like->data.row_stride &&
                          (!w->is_int4() || w->scale.row_stride == like->scale.row_stride),
                      "ExpertMlp on CUDA has kernels for experts of one type and row stride, not "
                      "for ",
                      describe(w->data), " beside ", describe(first.gate.data));
}

// Which kernel multiplies the slots of routed experts.
struct ExpertKernel {
  int token_tile;
  bool tiled;       // by tensor cores, with rows that start at 16 bytes: any tile
  bool persistent;  // gemm_persistent()
  bool tma;         // gemm_tma()
  bool in_slots;    // it takes the rows of x one after the other, by the copy engine
};

// `tile`: of the table or the plan.
ExpertKernel expert_kernel(const ops::ExpertMlp& op, int tile) {
  const DType type = op.local.front().gate.data.dtype;
  const bool e4m3 = is_e4m3(op);
  const bool scales = !int4_by_e4m3(op);
  const bool all_aligned = std::ranges::all_of(op.local, [&](const ops::Expert& e) {
    return aligned(e.gate, scales) && aligned(e.up, scales) && aligned(e.down, scales);
  });
  if (int4_by_e4m3(op)) {
    require_aligned_int4(all_aligned);
    return {.token_tile = kIntegerTmaTile,
            .tiled = true,
            .persistent = false,
            .tma = true,
            .in_slots = true};
  }
  ExpertKernel k{};
  k.tiled = e4m3 ? all_aligned : tensor_cores_take(op.x, type, all_aligned);
  k.token_tile = k.tiled ? tile : e4m3 ? kUnalignedE4m3Tile : kSimpleTokenTile;
  k.persistent = k.tiled && persistent_takes(k.token_tile, std::int64_t(op.local.size()), type);
  k.tma = !k.persistent && k.token_tile > kLargestTileWithoutTma;
  k.in_slots = k.tma || (e4m3 && k.token_tile > kLargestTileWithoutTma);
  return k;
}

ExpertGroups expert_groups(Workspace& memory, std::int64_t experts, std::int64_t slots,
                           std::int64_t tiles) {
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
  carve(Carver(memory.reserve<char>(carve(Carver(nullptr)))));
  return groups;
}

// Of a slot: what its down projection gives, and before that its row of x with a scale.
std::int64_t out_row_bytes(const ops::ExpertMlp& op) {
  constexpr std::int64_t kFloat = sizeof(float);
  const std::int64_t x_size = takes_e4m3(op) ? 1 : std::int64_t(size_of(op.x.dtype));
  return std::max(op.x.cols * kFloat, round_up<std::int64_t>(op.x.cols * x_size, 16) + kFloat);
}

// The experts' weights as the kernels that get them from the host take them.
struct ExpertRefs {
  std::vector<WeightRef> gate, up, down;
  explicit ExpertRefs(std::span<const ops::Expert> experts) {
    for (const ops::Expert& e : experts) {
      gate.push_back(ref(e.gate));
      up.push_back(ref(e.up));
      down.push_back(ref(e.down));
    }
  }
};

// What both products of the slots have in common.
Gemm slots_gemm(const ops::ExpertMlp& op, const ExpertKernel& kernel, const ExpertGroups& groups,
                std::int64_t slots, std::int64_t tiles) {
  Gemm g{};
  g.x_type = takes_e4m3(op) ? DType::f8e4m3 : op.x.dtype;
  g.w_type = op.local.front().gate.data.dtype;
  g.token_tile = kernel.token_tile;
  g.args.tiles = groups.tiles;
  g.args.tile_count = groups.tile_count;
  g.args.max_tiles = int(tiles);
  g.args.slots = slots;
  return g;
}

// The experts' weights, all shaped as `first`; with `up` for SwiGLU.
void set_experts(GemmArgs& args, const quant::Weight& first, const WeightRef* weights,
                 const WeightRef* up) {
  args.weights = weights;
  args.up_weights = up;
  args.w_scale_stride = first.scale.row_stride;
  args.n = int(first.n());
  args.k = int(first.k());
}

// For the product of what this one gave.
void set_input_to_output(GemmArgs& args) {
  args.x = args.y;
  args.x_stride = args.y_stride;
  args.x_scale = args.y_scale;
  args.x_scale_stride = args.y_scale_stride;
  args.rows = nullptr;
}

void multiply(cudaStream_t stream, const Gemm& g, const ExpertKernel& kernel,
              const HostWeights& weights, int processors) {
  if (kernel.tma)
    gemm_tma(stream, g, weights, processors);
  else if (kernel.persistent)
    gemm_persistent(stream, g, weights, processors);
  else if (g.w_type == DType::f8e4m3)
    gemm_e4m3(stream, g, kernel.tiled);
  else
    gemm(stream, g, kernel.tiled, processors);
}

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

E4m3Rows CudaBackend::hidden_e4m3_rows(std::int64_t rows, std::int64_t inter) {
  return e4m3_rows(hidden_e4m3_, rows, inter, ceil_div(inter, quant::kE4m3Group));
}

View CudaBackend::hidden_rows(DType dtype, std::int64_t rows, std::int64_t inter) {
  const auto size = std::int64_t(size_of(dtype));
  const std::int64_t stride = round_up<std::int64_t>(inter * size, 16) / size;
  View hidden =
      matrix(expert_hidden_.reserve<char>(rows * stride * size), dtype, rows, inter, Device::cuda);
  hidden.row_stride = stride;
  return hidden;
}

E4m3Rows CudaBackend::quantised_slots(const ops::ExpertMlp& op, const ExpertGroups& groups,
                                      void* memory) {
  const std::int64_t tokens = op.x.rows, top_k = op.experts.cols;
  const E4m3Rows from = int4_by_e4m3(op) ? in_int4_order(x_e4m3_, op.x) : quantised(op.x);
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

E4m3Rows CudaBackend::in_int4_order(E4m3Memory& memory, const View& x) {
  rounded_ = {};
  const E4m3Rows rows = e4m3_rows(memory, x.rows, x.cols, 1);
  quantise_rows(stream_, x, rows, E4m3Order::int4);
  return rows;
}

void CudaBackend::enqueue(const ops::Linear& op) {
  begin(op.y);
  if (int4_by_e4m3(op.w, op.activations) && op.x.cols > 0) {
    if (op.x.rows > 0 && op.w.n() > 0)
      dense_e4m3(stream_, processors_, kIntegerTmaTile, in_int4_order(x_e4m3_, op.x), op.x.rows,
                 op.w, nullptr, nullptr, op.y);
    return;
  }
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
    require_one_type(expert.gate, expert.down);
    const E4m3Rows x = quantised(op.x);
    const E4m3Rows hidden = hidden_e4m3_rows(op.x.rows, inter);
    dense_e4m3(stream_, processors_, up_tile, x, op.x.rows, expert.gate, &expert.up, &hidden, {});
    dense_e4m3(stream_, processors_, down_tile, hidden, op.x.rows, expert.down, nullptr, nullptr,
               op.y);
    return;
  }
  const View hidden = hidden_rows(op.x.dtype, op.x.rows, inter);
  if (int4_by_e4m3(op)) {
    require_one_type(expert.gate, expert.down, false);
    const auto multiply = [&](const E4m3Rows& x, const quant::Weight& w, const quant::Weight* up,
                              const View& y) {
      dense_e4m3(stream_, processors_, kIntegerTmaTile, x, op.x.rows, w, up, nullptr, y);
    };
    multiply(in_int4_order(x_e4m3_, op.x), expert.gate, &expert.up, hidden);
    multiply(in_int4_order(hidden_e4m3_, hidden), expert.down, nullptr, op.y);
    return;
  }
  dense(stream_, processors_, up_tile, op.x, expert.gate, &expert.up, hidden);
  dense(stream_, processors_, down_tile, hidden, expert.down, nullptr, op.y);
}

void CudaBackend::set_slots_input(GemmArgs& args, const ops::ExpertMlp& op,
                                  const ExpertGroups& groups, void* spread) {
  args.rows = spread ? nullptr : groups.token;
  if (takes_e4m3(op))
    set_input(args, spread ? quantised_slots(op, groups, spread) : quantised(op.x));
  else
    set_input(args, spread ? slot_rows(op, groups, spread) : op.x);
}

ExpertSums CudaBackend::routed_sums(const ops::ExpertMlp& op, const GroupChoices& group) {
  require_kernels(op);
  const ops::Expert& first = op.local.front();
  const auto experts = std::int64_t(op.local.size());
  const std::int64_t slots = op.x.rows * op.experts.cols, inter = first.gate.n();
  const ExpertKernel kernel =
      expert_kernel(op, tile(ops::product(first.gate, true, experts), op.x.rows));
  const std::int64_t tiles = most_tiles(slots, experts, kernel.token_tile);
  const ExpertGroups groups = expert_groups(expert_index_, experts, slots, tiles);
  group(kernel.token_tile, groups);

  // What down gives. Until then, the rows of x for the copy engine, in the slots' order.
  char* const out = expert_out_.reserve<char>(slots * out_row_bytes(op));
  const ExpertRefs refs(op.local);
  Gemm g = slots_gemm(op, kernel, groups, slots, tiles);
  set_slots_input(g.args, op, groups, kernel.in_slots ? out : nullptr);
  const View hidden = is_e4m3(op) ? View{} : hidden_rows(op.x.dtype, slots, inter);
  is_e4m3(op) ? set_output(g.args, hidden_e4m3_rows(slots, inter)) : set_output(g.args, hidden);
  set_experts(g.args, first.gate, groups.gate, groups.up);
  g.swiglu = true;
  if (inter > 0) multiply(stream_, g, kernel, {refs.gate, refs.up}, processors_);

  if (int4_by_e4m3(op))
    set_input(g.args, in_int4_order(hidden_e4m3_, hidden));
  else
    set_input_to_output(g.args);
  set_output(g.args, matrix(out, DType::f32, slots, op.x.cols, Device::cuda));
  set_experts(g.args, first.down, groups.down, nullptr);
  g.swiglu = false;
  g.listed = inter > 0;
  multiply(stream_, g, kernel, {refs.down, {}}, processors_);
  return {.slot_of = groups.slot_of, .out = reinterpret_cast<const float*>(out)};
}

}  // namespace ostro::cuda
