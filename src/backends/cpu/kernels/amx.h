// AMX tiles: sixteen rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifdef __AMX_BF16__

namespace ostro::cpu::OSTRO_ISA {
namespace {

constexpr std::int64_t kSide = 16;   // rows of a tile, and its columns of f32 or of pairs of bf16
constexpr std::int64_t kDepth = 32;  // bf16 of a row: the k of one multiplication
constexpr std::int64_t kTileBytes = 1024;

// Eight whole tiles for this thread, from the constructor to the destructor.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = 64;
      config.rows[t] = kSide;
    }
    asm volatile("" : : "r"(&config) : "memory");  // GCC 12 drops the stores otherwise
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace ostro::cpu::OSTRO_ISA

#endif
