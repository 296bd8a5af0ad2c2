// The linear loss on Hopper on the CPU: what the driver does with hopper_linear.cu.
#pragma once

#include "masked_cross_entropy/hopper_linear.h"

namespace clustermim::hopper::emulated {

template <class Kind>
void run_linear(const LinearArguments& arguments, int blocks) {
  const Shape shape = {blocks, Kind::kThreads, Kind::kCluster, Kind::kBytes};
  launch(shape, [&](Address memory) { linear_rows<Kind>(arguments, memory); });
}

}  // namespace clustermim::hopper::emulated
