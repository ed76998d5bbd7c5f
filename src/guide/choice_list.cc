#include "guide/choice_list.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace ostro::guide {
namespace {

constexpr std::size_t kMostChoices = 1024;

// As a literal of the grammar. Characters beyond ASCII stand for themselves.
std::string quoted(const std::string& choice) {
  std::string out = "\"";
  for (const char c : choice) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", unsigned(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace

std::string grammar_of_choices(std::string_view json_list) {
  const nlohmann::json list = parse_json(json_list, "the list of choices");
  OSTRO_REQUIRE(list.is_array() && !list.empty() && list.size() <= kMostChoices, "the choices are ",
                shown(list), "; they must be a list of 1 to ", kMostChoices, " strings");
  std::string grammar = "root ::=";
  for (const nlohmann::json& choice : list) {
    OSTRO_REQUIRE(choice.is_string() && !choice.get_ref<const std::string&>().empty(),
                  "a choice is ", shown(choice), "; it must be a string that is not empty");
    grammar +=
        (&choice == &list.front() ? " " : " | ") + quoted(choice.get_ref<const std::string&>());
  }
  return grammar + '\n';
}

}  // namespace ostro::guide
