#include "server/guide_fields.h"

#include <utility>

#include "base/error.h"

namespace ostro::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string in_order(std::string_view body, const char* pointer) {
  return ordered_json::parse(body).at(ordered_json::json_pointer(pointer)).dump();
}

std::optional<Guide> read_response_format(Fields& fields, std::string_view body) {
  const json* value = fields.any("response_format");
  if (!value) return {};
  Fields format(*value, "response_format");
  const auto type = format.string("type");
  if (!type) missing(format.path("type"));
  if (*type == "json_schema") {
    const json* inside = format.any("json_schema");
    format.refuse_others();
    if (!inside) missing(format.path("json_schema"));
    Fields schema(*inside, format.path("json_schema"));
    schema.string("name");
    schema.string("description");
    schema.boolean("strict");  // an answer fits the schema either way
    if (!schema.any("schema")) missing(schema.path("schema"));
    schema.refuse_others();
    return Guide{GuideKind::json_schema, in_order(body, "/response_format/json_schema/schema")};
  }
  format.refuse_others();
  if (*type == "json_object") return Guide{GuideKind::json_object};
  if (*type != "text")
    refuse_value(format.path("type"), R"("text", "json_object" or "json_schema")", *type);
  return {};
}

}  // namespace

std::optional<Guide> read_guide(Fields& fields, std::string_view body) {
  std::optional<Guide> guide = read_response_format(fields, body);
  const auto take = [&](const char* field, Guide asked) {
    if (guide)
      refuse(field, text('"', field, "\" and another field both say what the answer must be"));
    guide = std::move(asked);
  };
  if (const json* schema = fields.any("guided_json"))
    take("guided_json",
         {GuideKind::json_schema,
          schema->is_string() ? schema->get<std::string>() : in_order(body, "/guided_json")});
  if (auto regex = fields.string("guided_regex"))
    take("guided_regex", {GuideKind::regex, std::move(*regex)});
  if (auto grammar = fields.string("guided_grammar"))
    take("guided_grammar", {GuideKind::grammar, std::move(*grammar)});
  if (const json* choices = fields.any("guided_choice"))
    take("guided_choice", {GuideKind::choice, choices->dump()});
  return guide;
}

}  // namespace ostro::server
