#include "model/tactics_file.h"

#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/staging.h"

namespace ostro::model {
namespace {

constexpr std::size_t kLongestFile = 16 << 20;
constexpr std::int64_t kMost = std::int64_t{1} << 40;  // of any size

constexpr std::array kTypes = {DType::f32,    DType::f16, DType::bf16,
                               DType::f8e4m3, DType::i8,  DType::u8};

DType parse_type(const JsonObject& o) {
  const std::string found = o.string("weights");
  for (const DType type : kTypes)
    if (name(type) == found) return type;
  OSTRO_THROW(InvalidArgument, o.source(), ": \"weights\" is \"", found,
              "\"; it must be f32, f16, bf16, f8e4m3, i8 or u8 (int4)");
}

// [[tokens, tile], ...], tokens rising.
void parse_tiles(const JsonObject& o, const ops::Product& product, ops::Tactics& tactics) {
  const nlohmann::json& tiles = o.at("tiles");
  const auto number = [](const nlohmann::json& v, std::int64_t most) {
    return v.is_number_integer() && v >= 1 && v <= most;
  };
  std::int64_t last = 0;
  OSTRO_REQUIRE(tiles.is_array(), o.source(), ": \"tiles\" is ", shown(tiles),
                "; it must be a list of pairs");
  for (const nlohmann::json& pair : tiles) {
    const bool good = pair.is_array() && pair.size() == 2 && number(pair[0], kMost) &&
                      number(pair[1], INT32_MAX) && pair[0] > last;
    OSTRO_REQUIRE(good, o.source(), ": \"tiles\" has ", shown(pair),
                  "; it must be [tokens, tokens of a tile], the tokens more than ", last);
    last = pair[0];
    tactics.set(product, last, pair[1]);
  }
}

}  // namespace

std::string_view ostro_version() { return OSTRO_VERSION; }

std::string to_text(const MeasuredTactics& m) {
  nlohmann::ordered_json products = nlohmann::ordered_json::array();
  for (const auto& [p, by_tokens] : m.tactics.all()) {
    nlohmann::ordered_json tiles = nlohmann::ordered_json::array();
    for (const auto& [tokens, tile] : by_tokens) tiles.push_back({tokens, tile});
    products.push_back({{"weights", name(p.weights)},
                        {"n", p.n},
                        {"k", p.k},
                        {"swiglu", p.swiglu},
                        {"experts", p.experts},
                        {"grouped_x", p.grouped_x},
                        {"tiles", std::move(tiles)}});
  }
  const nlohmann::ordered_json file = {
      {"ostro_version", m.version}, {"device", m.device}, {"products", std::move(products)}};
  return file.dump() + '\n';
}

MeasuredTactics parse_tactics(std::string_view content, std::string_view source) {
  const nlohmann::json parsed = parse_json(content, source);
  const JsonObject file(parsed, source);
  MeasuredTactics m{
      .device = file.string("device"), .version = file.string("ostro_version"), .tactics = {}};
  if (m.version != ostro_version()) return m;
  const nlohmann::json& products = file.at("products");
  OSTRO_REQUIRE(products.is_array(), source, ": \"products\" is ", shown(products),
                "; it must be a list");
  for (const nlohmann::json& entry : products) {
    const std::string where = text(source, ", a product");
    const JsonObject o(entry, where);
    parse_tiles(o,
                {.weights = parse_type(o),
                 .n = o.integer("n", 1, kMost),
                 .k = o.integer("k", 1, kMost),
                 .swiglu = o.boolean_or("swiglu", false),
                 .experts = o.integer("experts", 0, kMost),
                 .grouped_x = o.boolean_or("grouped_x", false)},
                m.tactics);
  }
  return m;
}

void write_tactics(const std::filesystem::path& engine_dir, const ops::Backend& backend,
                   const ops::Tactics& tactics) {
  const std::string content = to_text({backend.description(), OSTRO_VERSION, tactics});
  replace_file(engine_dir / checkpoint::kTacticsFileName, {std::as_bytes(std::span(content))});
}

std::optional<MeasuredTactics> read_tactics(const std::filesystem::path& engine_dir) {
  const std::filesystem::path path = engine_dir / checkpoint::kTacticsFileName;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::nullopt;
  return parse_tactics(read_file(path, kLongestFile), path.string());
}

void use_tactics(const std::filesystem::path& engine_dir, ops::Backend& backend, const Log& log) {
  const auto measured = read_tactics(engine_dir);
  if (!measured) return;
  const std::string path = (engine_dir / checkpoint::kTacticsFileName).string();
  if (measured->device != backend.description() || measured->version != ostro_version()) {
    log.warning(path, " is not used: it was measured on ", measured->device, " by Ostro ",
                measured->version, "; this is ", backend.description(), ", Ostro ",
                ostro_version());
    return;
  }
  try {
    backend.use(measured->tactics);
  } catch (const InvalidArgument& e) {
    OSTRO_THROW(InvalidArgument, path, ": ", e.what(), "; remove the file or tune again");
  }
  log.info(path, " is used: tiles of ", measured->tactics.all().size(), " products");
}

}  // namespace ostro::model
