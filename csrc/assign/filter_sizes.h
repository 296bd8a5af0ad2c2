// Sizes of a filter's operands; not for the units of one ISA (functions here are inline).
#pragma once

#include "assign/filter.h"

namespace clustermim {

inline int64_t padded_dim(const FilterKernel& kernel, int64_t dim) {
  return (dim + kernel.step - 1) / kernel.step * kernel.step;
}
inline int64_t value_bytes(const FilterKernel& kernel) {
  return kernel.format == Format::float32 ? 4 : 2;
}
// One cache line more than the values: rows a multiple of 4096 bytes apart share L1 sets.
inline int64_t packed_row_bytes(const FilterKernel& kernel, int64_t dim) {
  return (padded_dim(kernel, dim) * value_bytes(kernel) + 63) / 64 * 64 + 64;
}
inline int64_t packed_tile_bytes(const FilterKernel& kernel, int64_t dim) {
  return padded_dim(kernel, dim) * value_bytes(kernel) * kernel.tile;
}

}  // namespace clustermim
