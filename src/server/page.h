// The page at "/": chat and a live view. Its files are src/server/page/, compiled in.
#pragma once

#include <string_view>

namespace ostro::server {

struct PageFile {
  std::string_view path;  // "/page.css"
  std::string_view content_type;
  std::string_view text;
};

// Null if the page has no such file.
const PageFile* page_file(std::string_view path);

}  // namespace ostro::server
