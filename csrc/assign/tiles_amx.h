// The AMX instructions as volatile statements that order memory. GCC 12's own headers declare
// neither all of the configuration's bytes nor the loads from memory, and drop stores before them.
#pragma once

#include <cstdint>

#define CMIM_TILE_LOAD(tile, address, stride)                                                  \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(static_cast<const void*>(address)), \
                   "r"(static_cast<int64_t>(stride))                                           \
                   : "memory")
#define CMIM_TILE_STORE(tile, address, stride)                                                \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(static_cast<void*>(address)), \
                   "r"(static_cast<int64_t>(stride))                                          \
                   : "memory")
#define CMIM_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile::)
#define CMIM_TILE_DOT_BF16(sum, a, b) \
  __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)
#define CMIM_TILE_DOT_U8S8(sum, a, b) \
  __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)

namespace clustermim {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Eight tiles of 16 rows of 64 bytes.
constexpr TileConfig kWholeTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

inline void enter_tiles() {
  __asm__ volatile("ldtilecfg %0" ::"m"(kWholeTiles) : "memory");
}
inline void leave_tiles() {
  __asm__ volatile("tilerelease" ::: "memory");
}

}  // namespace
}  // namespace clustermim
