// The bytes of a rank's slice, a few MB at a time: from a checkpoint, or drawn at random.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <vector>

#include "builder/dummy.h"
#include "builder/sources.h"
#include "model/layout.h"

namespace ostro::builder {

// Takes the next bytes of the slice; they are valid during the call.
using ByteSink = std::function<void(std::span<const std::byte>)>;

// Belongs to one thread. Memory: a buffer of 4 MB, another where elements are converted or
// quantised, the scales of quantised weights until they are asked for, and the pages of a
// transposed matrix, which it reads through the map and releases at its end.
class SliceStream {
 public:
  // From a checkpoint, rounded to nearest even to the slice's dtype. Elements of f8e4m3, i8 and u8
  // (int4) are quantised by quant/, scales made from the whole row of the whole matrix, or from
  // whole groups of its columns. Throws InvalidArgument naming
  // the tensor if float16 cannot hold a value, or if a value to quantise is not finite.
  void copy(const SourceMatrix& source, const model::TensorSlice& slice, const ByteSink& sink);

  // At random; a norm is all ones.
  void draw(const DummyWeights& dummy, const model::TensorSlice& slice, const ByteSink& sink);

  // The scales of a weight that was streamed before.
  void scales(const model::TensorSlice& slice, const ByteSink& sink);

 private:
  // Calls fill(rows) for the slice's rows, as many as fit the buffer at once, and passes them on.
  template <class Fill>
  void by_rows(const model::TensorSlice& slice, const ByteSink& sink, Fill fill);
  std::byte* at(std::int64_t element) {
    return buffer_.data() + std::size_t(element) * size_of(dtype_);
  }
  void copy_rows(const SourceMatrix& source, const model::TensorSlice& slice, const ByteSink& sink);
  void copy_run(const SourceBlock& block, const model::TensorSlice& slice, const ByteSink& sink);
  void quantise(const SourceMatrix& source, const model::TensorSlice& slice, const ByteSink& sink);
  void encode_row(std::span<const float> row, const model::TensorSlice& slice, std::uint8_t* to,
                  std::vector<std::byte>& scales);
  void gather(const SourceMatrix& source, const SourceBlock& block, Range rows, Range cols);
  void transpose(const SourceBlock& block, Range rows, Range cols);
  void read_run(const SourceBlock& block, std::int64_t first, std::int64_t elements,
                std::byte* out);
  void check_halves(const SourceMatrix& source, std::int64_t elements) const;

  DType dtype_ = DType::bf16;  // of the elements in buffer_
  std::vector<std::byte> buffer_;
  std::vector<std::byte> raw_;  // before conversion
  std::vector<std::uint8_t> quantised_;
  std::map<std::string, std::vector<std::byte>> scales_;  // by the weight's name
};

}  // namespace ostro::builder
