// Zip archives and pickles as torch.save writes them, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace ostro::testing {

template <class T>
std::string le(T value) {
  std::string s(sizeof(T), '\0');
  std::memcpy(s.data(), &value, sizeof(T));
  return s;
}

struct ZipFile {
  std::string name;
  std::string content;
  std::uint16_t method = 0;
};

// With `wide`, sizes and offsets stand in 64-bit extra fields and ends, as in files above 4 GB.
inline std::string zip(const std::vector<ZipFile>& files, bool wide = false) {
  using u16 = std::uint16_t;
  using u32 = std::uint32_t;
  using u64 = std::uint64_t;
  std::string out, directory;
  for (const ZipFile& f : files) {
    const u64 offset = out.size();
    const auto size = u32(f.content.size());
    const auto name = u16(f.name.size());
    out += le<u32>(0x04034b50) + le<u16>(20) + le<u16>(0) + le<u16>(f.method) + le<u32>(0) +
           le<u32>(0) + le(size) + le(size) + le(name) + le<u16>(3) + f.name + "pad" + f.content;
    const u32 all = 0xffffffff;
    const std::string extra =
        wide ? le<u16>(1) + le<u16>(24) + le(u64(size)) + le(u64(size)) + le(offset) : "";
    directory += le<u32>(0x02014b50) + le<u16>(20) + le<u16>(20) + le<u16>(0) + le<u16>(f.method) +
                 le<u32>(0) + le<u32>(0) + le(wide ? all : size) + le(wide ? all : size) +
                 le(name) + le(u16(extra.size())) + le<u16>(0) + le<u16>(0) + le<u16>(0) +
                 le<u32>(0) + le(wide ? all : u32(offset)) + f.name + extra;
  }
  const u64 begin = out.size();
  out += directory;
  const auto count = u16(files.size());
  if (wide) {
    const u64 end64 = out.size();
    out += le<u32>(0x06064b50) + le<u64>(44) + le<u16>(45) + le<u16>(45) + le<u32>(0) + le<u32>(0) +
           le(u64(count)) + le(u64(count)) + le(u64(directory.size())) + le(begin);
    out += le<u32>(0x07064b50) + le<u32>(0) + le(end64) + le<u32>(1);
  }
  out += le<u32>(0x06054b50) + le<u16>(0) + le<u16>(0) + le(wide ? u16(0xffff) : count) +
         le(wide ? u16(0xffff) : count) + le(wide ? ~u32(0) : u32(directory.size())) +
         le(wide ? ~u32(0) : u32(begin)) + le<u16>(0);
  return out;
}

// Pieces of a protocol-2 pickle.
namespace pickle {

inline std::string str(const std::string& s) { return "X" + le(std::uint32_t(s.size())) + s; }
inline std::string integer(std::int32_t n) { return "J" + le(n); }
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string tuple(const std::vector<std::int32_t>& numbers) {
  std::string s = "(";
  for (const std::int32_t n : numbers) s += integer(n);
  return s + "t";
}
inline std::string storage(const std::string& type, const std::string& key) {
  return "(" + str("storage") + global("torch", type) + str(key) + str("cpu") + integer(1) + "tQ";
}
inline std::string tensor(const std::string& storage, std::int32_t offset,
                          const std::vector<std::int32_t>& shape,
                          const std::vector<std::int32_t>& stride) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer(offset) +
         tuple(shape) + tuple(stride) + "\x89" + global("collections", "OrderedDict") + ")RtR";
}
// {key: value, ...}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string s = std::string("\x80\x02}q") + '\0' + "(";
  for (const auto& [key, value] : items) s += str(key) + value;
  return s + "u.";
}

}  // namespace pickle
}  // namespace ostro::testing
