// What the contracts of all ops have in common. Each rule that is broken throws InvalidArgument and
// names the op, the operand, what it is and what was wanted:
//
//   const Contract contract("Linear", x.device);
//   contract.shape("y", y, x.rows, w.n());     "Linear: y is f32 [3,7], wanted [3,8]"
//
// check() runs for every op of every layer of every step: the rules only compare, and make text
// when they fail.
#pragma once

#include <string_view>

#include "ops/activations.h"
#include "quant/int4.h"
#include "quant/weight.h"

namespace ostro::ops {

class Contract {
 public:
  // Every operand must be on `device`, that of the op's first operand.
  Contract(std::string_view op, Device device) : op_(op), device_(device) {}

  // `v` is a readable [rows, cols] matrix whose rows do not overlap.
  void shape(std::string_view operand, const View& v, std::int64_t rows, std::int64_t cols) const {
    OSTRO_REQUIRE(v.rows == rows && v.cols == cols && rows >= 0 && cols >= 0, op_, ": ", operand,
                  " is ", describe(v), ", wanted [", rows, ',', cols, ']');
    OSTRO_REQUIRE(v.row_stride >= cols || rows <= 1, op_, ": ", operand, " is ", describe(v),
                  " with a row every ", v.row_stride, " elements");
    OSTRO_REQUIRE(v.data || rows == 0 || cols == 0, op_, ": ", operand, " is ", describe(v),
                  " without memory");
    OSTRO_REQUIRE(v.device == device_, op_, ": ", operand, " is on ", device_name(v.device),
                  ", wanted ", device_name(device_));
  }

  void dtype(std::string_view operand, const View& v, DType wanted) const {
    OSTRO_REQUIRE(v.dtype == wanted, op_, ": ", operand, " is ", describe(v), ", wanted ",
                  name(wanted));
  }

  // As `like`, or f32.
  void dtype_or_f32(std::string_view operand, const View& v, DType like) const {
    OSTRO_REQUIRE(v.dtype == like || v.dtype == DType::f32, op_, ": ", operand, " is ", describe(v),
                  ", wanted ", name(like), " or f32");
  }

  // f32, f16 or bf16; throws Unsupported naming these otherwise.
  void is_float(std::string_view operand, const View& v) const {
    if (!ostro::is_float(v.dtype)) [[unlikely]]
      visit_dtype<float, f16, bf16>(v.dtype, text(op_, ": ", operand), []<class T>() {});
  }

  // The same, or f8e4m3.
  void is_float_or_e4m3(std::string_view operand, const View& v) const {
    if (!ostro::is_float(v.dtype) && v.dtype != DType::f8e4m3) [[unlikely]]
      visit_dtype<float, f16, bf16, f8e4m3>(v.dtype, text(op_, ": ", operand), []<class T>() {});
  }

  // A weight [n, k] in any format of quant/weight.h.
  void weight(std::string_view operand, const quant::Weight& w, std::int64_t n, std::int64_t k,
              DType like) const {
    if (w.is_int4()) return int4_weight(operand, w, n, k);
    if (w.data.dtype != DType::f8e4m3 && w.data.dtype != DType::i8)
      return float_weight(operand, w, n, k, like);
    shape(operand, w.data, n, k);
    OSTRO_REQUIRE(w.scale.dtype == DType::f32 && w.scale.rows == 1 && w.scale.cols == n, op_, ": ",
                  operand, " is ", describe(w.data), " and has a scale ", describe(w.scale),
                  ", wanted f32 [1,", n, ']');
    shape("scale", w.scale, 1, n);
  }

  void int4_weight(std::string_view operand, const quant::Weight& w, std::int64_t n,
                   std::int64_t k) const {
    OSTRO_REQUIRE(k % quant::kInt4Group == 0, op_, ": ", operand, " is int4 and has ", k,
                  " columns, wanted a multiple of ", quant::kInt4Group);
    shape(operand, w.data, n, k / 2);
    OSTRO_REQUIRE(w.scale.dtype == DType::bf16, op_, ": ", operand, " is ", describe(w.data),
                  " and has a scale ", describe(w.scale), ", wanted bf16");
    shape("scale", w.scale, n, k / quant::kInt4Group);
  }

  // A weight [n, k] that is not quantised.
  void float_weight(std::string_view operand, const quant::Weight& w, std::int64_t n,
                    std::int64_t k, DType like) const {
    shape(operand, w.data, n, k);
    is_float(operand, w.data);
    dtype_or_f32(operand, w.data, like);
    OSTRO_REQUIRE(!w.scale, op_, ": ", operand, " is ", describe(w.data), " and has a scale ",
                  describe(w.scale));
  }

  // Activations are rounded for e4m3 and int4 weights alone.
  void activations(Activations a, std::string_view operand, const quant::Weight& w) const {
    OSTRO_REQUIRE(a == Activations::as_is || w.data.dtype == DType::f8e4m3 || w.is_int4(), op_,
                  ": activations are rounded to f8e4m3, but ", operand, " is ", describe(w.data));
  }

  // An output that must not be another operand.
  void apart(std::string_view operand, const View& v, std::string_view other_operand,
             const View& other) const {
    OSTRO_REQUIRE(v.data != other.data || !v.data, op_, ": ", operand, " is the memory of ",
                  other_operand);
  }

 private:
  static std::string_view device_name(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

  std::string_view op_;
  Device device_;
};

}  // namespace ostro::ops
