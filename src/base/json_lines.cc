#include "base/json_lines.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/file.h"

namespace ostro {

void for_each_json_line(const std::filesystem::path& path,
                        const std::function<bool(const JsonObject&)>& take) {
  std::istringstream lines(read_file(path));
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const std::string where = text(path.string(), " line ", number);
    const nlohmann::json parsed = parse_json(line, where);
    if (!take(JsonObject(parsed, where))) return;
  }
}

}  // namespace ostro
