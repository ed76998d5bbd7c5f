// A list of allowed outputs as a grammar.
#pragma once

#include <string>
#include <string_view>

namespace ostro::guide {

// The EBNF grammar of the strings in a JSON list. Throws InvalidArgument if it is no list of one
// to 1024 strings, none of them empty.
std::string grammar_of_choices(std::string_view json_list);

}  // namespace ostro::guide
