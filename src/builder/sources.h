// Where each logical matrix of the model lies in a checkpoint: the one place that knows how
// checkpoints name, merge, split, transpose and permute weights.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/math.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace ostro::builder {

// A rectangle of a logical matrix, as one tensor of the checkpoint holds it. The element of the
// rectangle's row r and column c is element first + r * stride + c of the tensor, or
// first + c * stride + r if it is transposed.
struct SourceBlock {
  checkpoint::Checkpoint::Part part;
  std::int64_t first = 0;
  std::int64_t stride = 0;
  bool transposed = false;
  Range rows;
  Range cols;
};

struct SourceMatrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<SourceBlock> blocks;  // they tile the matrix
  // Not 0: Meta's rows of each head are pairs of one rotary angle, (2i, 2i+1). Ostro's kernels,
  // like Hugging Face's, rotate (i, i + head_dim/2): row source_row(r) of the blocks is row r.
  std::int64_t interleaved_head_dim = 0;

  std::int64_t source_row(std::int64_t row) const {
    if (interleaved_head_dim == 0) return row;
    const std::int64_t half = interleaved_head_dim / 2;
    const std::int64_t in_head = row % interleaved_head_dim;
    return row - in_head + 2 * (in_head % half) + in_head / half;
  }
};

// The checkpoint's model: from config.json, or from params.json and the shapes of some tensors.
model::ModelConfig model_of(const checkpoint::Checkpoint&);

// Finds all of the model's matrices, under the neutral names of model/layout.h. Throws
// InvalidArgument for a tensor that is missing or whose shape contradicts the configuration,
// Unsupported for one whose type Ostro does not read, or that the forward pass would ignore.
class Sources {
 public:
  Sources(const checkpoint::Checkpoint& checkpoint, const model::ModelConfig& config);

  const SourceMatrix& find(const std::string& name) const;

 private:
  using Shape = std::vector<std::int64_t>;

  void find_hugging_face();
  void find_hugging_face_experts(std::int64_t layer);
  void find_meta();
  void find_meta_experts(std::int64_t layer);

  bool has(const std::string& tensor) const { return !checkpoint_.parts(tensor).empty(); }
  // The matrix `name` is all of `tensor`, which model-parallel training may have left in pieces.
  void add(const std::string& name, const std::string& tensor, std::int64_t rows,
           std::int64_t cols);
  // The matrix `name` is a block inside one tensor of the given shape.
  void add_inside(const std::string& name, const std::string& tensor, const Shape& shape,
                  SourceBlock block);

  std::span<const checkpoint::Checkpoint::Part> use(const std::string& tensor);
  [[noreturn]] void refuse_shape(const checkpoint::Checkpoint::Part& part,
                                 const Shape& wanted) const;
  void check_tied(const std::string& head, const std::string& embedding);
  void refuse_unused() const;

  const checkpoint::Checkpoint& checkpoint_;
  const model::ModelConfig& config_;
  std::unordered_map<std::string, SourceMatrix> matrices_;
  std::unordered_set<std::string> used_;
};

}  // namespace ostro::builder
