#include "text/bpe_json_parts.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace ostro::txt {
namespace {

using nlohmann::json;

// A part's steps: the elements of a Sequence, sequences inside it included, or the part itself.
// `list` is the key under which a Sequence of this kind has them.
void collect_steps(const json& part, const char* list, const std::string& where,
                   std::vector<const json*>& steps) {
  const JsonObject object(part, where);
  if (object.string("type") != "Sequence") {
    steps.push_back(&part);
    return;
  }
  const json& inner = object.at(list);
  OSTRO_REQUIRE(inner.is_array(), where, ": \"", list, "\" is ", shown(inner),
                "; it must be a list");
  for (const json& step : inner) collect_steps(step, list, where, steps);
}

std::vector<const json*> steps_of(const json& document, const char* part, const char* list,
                                  const std::string& where) {
  std::vector<const json*> steps;
  const auto found = document.find(part);
  if (found != document.end() && !found->is_null()) collect_steps(*found, list, where, steps);
  return steps;
}

[[noreturn]] void refuse(const std::string& where, std::string_view type, const char* known) {
  OSTRO_THROW(Unsupported, where, " is of type ", type, "; this build has ", known);
}

std::string part_name(std::string_view where, const char* part) {
  return ostro::text(where, ": \"", part, '"');
}

// {"String": "x"} or {"Regex": "x"}.
struct Pattern {
  bool regex;
  std::string text;
};
Pattern read_pattern(const JsonObject& step, const std::string& where) {
  const JsonObject pattern(step.at("pattern"), where);
  if (pattern.has("String")) return {false, pattern.string("String")};
  return {true, pattern.string("Regex")};
}

Replace read_replace(const JsonObject& step, const std::string& where) {
  Pattern pattern = read_pattern(step, where);
  OSTRO_SUPPORTED(!pattern.regex, where, " replaces the regular expression ", pattern.text,
                  "; this build replaces strings only");
  OSTRO_REQUIRE(!pattern.text.empty(), where, " replaces the empty string");
  return {std::move(pattern.text), step.string("content")};
}

Metaspace read_metaspace(const JsonObject& step, const std::string& where) {
  Metaspace metaspace;
  metaspace.replacement = step.string("replacement");
  const bool one_char = !metaspace.replacement.empty() && is_utf8(metaspace.replacement) &&
                        next_utf8(metaspace.replacement).bytes == metaspace.replacement.size();
  OSTRO_REQUIRE(one_char, where, ": the replacement \"", metaspace.replacement,
                "\" must be one character");
  const std::string scheme = step.string_or("prepend_scheme", "always");
  if (scheme == "first") {
    metaspace.prefix = Metaspace::Prefix::first;
  } else if (scheme == "never") {
    metaspace.prefix = Metaspace::Prefix::never;
  } else {
    OSTRO_REQUIRE(scheme == "always", where, ": prepend_scheme is \"", scheme,
                  "\"; it must be first, never or always");
  }
  OSTRO_REQUIRE(step.boolean_or("add_prefix_space", true) || scheme == "never", where,
                ": add_prefix_space is false but prepend_scheme is \"", scheme, '"');
  metaspace.split = step.boolean_or("split", true);
  return metaspace;
}

Split read_split(const JsonObject& step, const std::string& where) {
  const Pattern pattern = read_pattern(step, where);
  Split split{pattern.regex ? Regex(pattern.text) : Regex::literal(pattern.text)};
  using enum Split::Behavior;
  const std::string behavior = step.string_or("behavior", "");
  if (behavior == "Removed")
    split.behavior = removed;
  else if (behavior == "Isolated")
    split.behavior = isolated;
  else if (behavior == "MergedWithPrevious")
    split.behavior = merged_with_previous;
  else if (behavior == "MergedWithNext")
    split.behavior = merged_with_next;
  else if (behavior == "Contiguous")
    split.behavior = contiguous;
  else
    OSTRO_THROW(InvalidArgument, where, ": behavior is \"", behavior,
                "\"; it must be Removed, Isolated, MergedWithPrevious, MergedWithNext or "
                "Contiguous");
  split.invert = step.boolean_or("invert", false);
  return split;
}

// "single" of a TemplateProcessing: special tokens around one sequence A.
JsonTemplate read_template(const JsonObject& step, const std::string& where) {
  const json& single = step.at("single");
  OSTRO_REQUIRE(single.is_array(), where, ": \"single\" is ", shown(single), "; it must be a list");
  JsonTemplate result;
  int sequences = 0;
  for (const json& piece : single) {
    const JsonObject object(piece, where);
    if (object.has("Sequence")) {
      ++sequences;
      continue;
    }
    const std::string id = JsonObject(object.at("SpecialToken"), where).string("id");
    const JsonObject tokens(step.at("special_tokens"), where);
    const JsonObject token(tokens.at(id.c_str()), where);
    const json& ids = token.at("ids");
    OSTRO_REQUIRE(ids.is_array(), where, ": the ids of \"", id, "\" are ", shown(ids),
                  "; they must be a list");
    for (const json& number : ids) {
      OSTRO_REQUIRE(number.is_number_integer() && 0 <= number.get<std::int64_t>() &&
                        number.get<std::int64_t>() < kMostIds,
                    where, ": an id of \"", id, "\" is ", shown(number));
      (sequences == 0 ? result.before : result.after).push_back(number.get<std::int32_t>());
    }
  }
  OSTRO_SUPPORTED(sequences == 1, where, " has the text ", sequences,
                  " times in its template; this build puts it there once");
  return result;
}

}  // namespace

std::string JsonDecoder::bytes_of(std::string_view token) const {
  if (byte_level) return byte_level_decode(token).value_or(std::string(token));
  std::string bytes(token);
  for (const Replace& replace : replacements) {
    if (bytes.find(replace.from) != bytes.npos) bytes = replace_all(bytes, replace);
  }
  if (byte_fallback && bytes.size() == 6 && bytes.starts_with("<0x") && bytes[5] == '>') {
    unsigned value = 0;
    const char* end = bytes.data() + 5;
    if (std::from_chars(bytes.data() + 3, end, value, 16).ptr == end) {
      return std::string(1, static_cast<char>(value));
    }
  }
  return bytes;
}

BpeSettings read_model(const json& document, std::string_view where) {
  const std::string name = part_name(where, "model");
  const auto found = document.find("model");
  OSTRO_REQUIRE(found != document.end() && !found->is_null(), where, " has no \"model\"");
  const JsonObject model(*found, name);
  const std::string type = model.string_or("type", "BPE");
  if (type != "BPE") refuse(name, type, "BPE");
  // The right kinds went into a BpeJsonFile.
  OSTRO_REQUIRE(!model.has("vocab"), name, ": \"vocab\" is ", shown(model.at("vocab")),
                "; it must be an object");
  OSTRO_REQUIRE(!model.has("merges"), name, ": \"merges\" is ", shown(model.at("merges")),
                "; it must be a list");
  OSTRO_SUPPORTED(!model.has("dropout") || model.number("dropout") == 0, name, " has the dropout ",
                  shown(model.value().value("dropout", json())),
                  "; this build encodes without chance");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    OSTRO_SUPPORTED(model.string_or(affix, "").empty(), name, " has the ", affix, " \"",
                    model.string_or(affix, ""), "\"; this build has none");
  }
  BpeSettings settings;
  settings.byte_fallback = model.boolean_or("byte_fallback", false);
  settings.fuse_unk = model.boolean_or("fuse_unk", false);
  settings.ignore_merges = model.boolean_or("ignore_merges", false);
  if (model.has("unk_token")) settings.unk_token = model.string("unk_token");
  return settings;
}

AddedToken read_added_token(const JsonObject& fields, std::int32_t id) {
  AddedToken token;
  token.id = id;
  token.content = fields.string("content");
  token.special = fields.boolean_or("special", false);
  token.single_word = fields.boolean_or("single_word", false);
  token.lstrip = fields.boolean_or("lstrip", false);
  token.rstrip = fields.boolean_or("rstrip", false);
  token.normalized = fields.boolean_or("normalized", !token.special);
  return token;
}

std::vector<AddedToken> read_added_tokens(const json& document, std::string_view where) {
  const std::string name = part_name(where, "added_tokens");
  const auto found = document.find("added_tokens");
  std::vector<AddedToken> tokens;
  if (found == document.end() || found->is_null()) return tokens;
  OSTRO_REQUIRE(found->is_array(), name, " is ", shown(*found), "; it must be a list");
  for (const json& item : *found) {
    const JsonObject fields(item, name);
    const auto id = static_cast<std::int32_t>(fields.integer("id", 0, kMostIds - 1));
    tokens.push_back(read_added_token(fields, id));
  }
  return tokens;
}

Normalizer read_normalizer(const json& document, std::string_view where) {
  const std::string name = part_name(where, "normalizer");
  Normalizer normalizer;
  for (const json* part : steps_of(document, "normalizer", "normalizers", name)) {
    const JsonObject step(*part, name);
    const std::string type = step.string("type");
    if (type == "Prepend")
      normalizer.steps.emplace_back(Prepend{step.string("prepend")});
    else if (type == "Replace")
      normalizer.steps.emplace_back(read_replace(step, name));
    else
      refuse(name, type, "Sequence, Prepend and Replace");
  }
  return normalizer;
}

PreTokenizer read_pre_tokenizer(const json& document, std::string_view where) {
  const std::string name = part_name(where, "pre_tokenizer");
  PreTokenizer pre_tokenizer;
  for (const json* part : steps_of(document, "pre_tokenizer", "pretokenizers", name)) {
    const JsonObject step(*part, name);
    const std::string type = step.string("type");
    if (type == "Metaspace") {
      pre_tokenizer.steps.emplace_back(read_metaspace(step, name));
    } else if (type == "Split") {
      pre_tokenizer.steps.emplace_back(read_split(step, name));
    } else if (type == "ByteLevel") {
      ByteLevel byte_level{.add_prefix_space = step.boolean_or("add_prefix_space", true)};
      if (step.boolean_or("use_regex", true)) byte_level.split = gpt2_split();
      pre_tokenizer.steps.emplace_back(std::move(byte_level));
    } else {
      refuse(name, type, "Sequence, Metaspace, Split and ByteLevel");
    }
  }
  return pre_tokenizer;
}

JsonDecoder read_decoder(const json& document, std::string_view where) {
  const std::string name = part_name(where, "decoder");
  constexpr const char* kKnown =
      "ByteLevel, Metaspace, and a Sequence of Replace, ByteFallback, Fuse and Strip";
  const auto steps = steps_of(document, "decoder", "decoders", name);
  OSTRO_SUPPORTED(!steps.empty(), name, " is missing; this build has ", kKnown);
  JsonDecoder decoder;
  bool fused = false;
  for (const json* part : steps) {
    const JsonObject step(*part, name);
    const std::string type = step.string("type");
    const bool alone = steps.size() == 1;
    if (type == "ByteLevel" && alone) {
      decoder.byte_level = true;
    } else if (type == "Metaspace" && alone) {
      const Metaspace metaspace = read_metaspace(step, name);
      decoder.replacements.push_back({metaspace.replacement, " "});
      if (metaspace.prefix != Metaspace::Prefix::never) {
        decoder.rule.leading_space = LeadingSpace::drop_all_of_first_token;
      }
    } else if (type == "Replace" && !fused && !decoder.byte_fallback) {
      decoder.replacements.push_back(read_replace(step, name));
    } else if (type == "ByteFallback" && !fused) {
      decoder.byte_fallback = true;
      decoder.rule.invalid_utf8 = InvalidUtf8::per_byte;
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Strip" && fused) {
      const auto start = step.integer("start", 0, 1 << 20);
      const auto stop = step.integer("stop", 0, 1 << 20);
      OSTRO_SUPPORTED(step.string("content") == " " && start <= 1 && stop == 0, name, " strips \"",
                      step.string("content"), "\" ", start, " times before and ", stop,
                      " times after the text; this build strips one space before it");
      if (start == 1) decoder.rule.leading_space = LeadingSpace::drop_one;
    } else {
      refuse(name, type, kKnown);
    }
  }
  return decoder;
}

JsonTemplate read_post_processor(const json& document, std::string_view where) {
  const std::string name = part_name(where, "post_processor");
  JsonTemplate result;
  for (const json* part : steps_of(document, "post_processor", "processors", name)) {
    const JsonObject step(*part, name);
    const std::string type = step.string("type");
    if (type == "ByteLevel") continue;  // moves offsets, which nobody asks for
    if (type != "TemplateProcessing") {
      refuse(name, type, "Sequence, TemplateProcessing and ByteLevel");
    }
    const JsonTemplate inner = read_template(step, name);
    result.before.insert(result.before.begin(), inner.before.begin(), inner.before.end());
    result.after.insert(result.after.end(), inner.after.begin(), inner.after.end());
  }
  return result;
}

}  // namespace ostro::txt
