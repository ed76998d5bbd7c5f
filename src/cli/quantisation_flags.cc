#include "cli/quantisation_flags.h"

#include "base/error.h"

namespace ostro::cli {

void QuantisationFlags::add(CLI::App& app, const char* group, const std::string& of) {
  app.add_flag("--enable_fp8,--use_fp8", fp8,
               of + "q, k, v, o and the experts in fp8 (e4m3) with a scale for each output")
      ->group(group);
  app.add_flag("--fp8_kv_cache", fp8_kv, of + "keys and values in fp8 (e4m3)")->group(group);
  app.add_flag("--use_weight_only", weight_only,
               of + "q, k, v, o and the experts as integers, activations as they are")
      ->group(group);
  app.add_option("--weight_only_precision", weight_only_precision,
                 of + "int8 (a scale for each output; default) or int4 (one for 128 columns)")
      ->group(group);
}

bool QuantisationFlags::given() const {
  return fp8 || fp8_kv || weight_only || !weight_only_precision.empty();
}

model::Quantization QuantisationFlags::quantization() const {
  using Format = model::Quantization::Format;
  const std::string& precision = weight_only_precision;
  OSTRO_REQUIRE(weight_only || precision.empty(), "--weight_only_precision ", precision,
                " goes with --use_weight_only");
  OSTRO_REQUIRE(precision.empty() || precision == "int8" || precision == "int4",
                "--weight_only_precision is \"", precision, "\"; it must be int8 or int4");
  OSTRO_REQUIRE(!weight_only || !fp8,
                "--use_weight_only and --enable_fp8 both say how weights are "
                "stored; give one");
  return {.weights = weight_only ? precision == "int4" ? Format::int4 : Format::int8
                     : fp8       ? Format::fp8
                                 : Format::none,
          .kv_cache = fp8_kv ? Format::fp8 : Format::none};
}

}  // namespace ostro::cli
