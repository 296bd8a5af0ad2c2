// The Hopper filter on the CPU: what the driver does with hopper_filter.cu.
#pragma once

#include "nearest_centroid/hopper_filter.h"

namespace clustermim::hopper::emulated {

// packed: float16 [column_tiles * 128, kDepth].
template <class Kind>
void run_filter(const FilterArguments& arguments, const uint16* packed, int blocks) {
  const TensorMap map =
      box_map(packed, int64(arguments.column_tiles) * Kind::kColumns, Kind::kDepth, Kind::kDepth,
              Kind::kColumns / Kind::kCluster, Kind::kStep);
  const Shape shape = {blocks, Kind::kThreads, Kind::kCluster, Kind::kBytes};
  launch(shape, [&](Address memory) { filter<Kind>(arguments, &map, memory); });
}

}  // namespace clustermim::hopper::emulated
