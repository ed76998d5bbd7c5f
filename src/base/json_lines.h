// .jsonl files: an object of JSON a line.
#pragma once

#include <filesystem>
#include <functional>

#include "base/json.h"

namespace ostro {

// Calls `take` for each line that is not blank until it returns false; the object's source reads
// "FILE line 7". Throws InvalidArgument for a line that is no object of JSON.
void for_each_json_line(const std::filesystem::path& path,
                        const std::function<bool(const JsonObject&)>& take);

}  // namespace ostro
