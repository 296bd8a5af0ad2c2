// Loads kernels and launches them. These act on the calling thread's current context (torch makes
// its device's current); a thread without one gets the primary context of `device`.
#pragma once

#include "core/status.h"
#include "gpu/driver_abi.h"

namespace clustermim::gpu {

// A function of a cubin, in the context of `device`; never unloaded. shared_bytes: dynamic shared
// memory that its launches may ask for.
struct LoadArgs {
  const void* cubin = nullptr;
  const char* name = nullptr;
  int shared_bytes = 0;
  int device = 0;
};
Status load_kernel(const LoadArgs& args, CuFunction* kernel);

// cluster: blocks of a cluster. arguments[i] points at the i-th argument of the kernel, which is
// copied before the call returns. Does not wait. A grid of no blocks does nothing.
struct LaunchArgs {
  CuFunction kernel = nullptr;
  unsigned grid[3] = {1, 1, 1};
  unsigned block[3] = {1, 1, 1};
  unsigned cluster[3] = {1, 1, 1};
  unsigned shared_bytes = 0;
  CuStream stream = nullptr;
  int device = 0;
  void** arguments = nullptr;
};
Status launch_kernel(const LaunchArgs& args);

}  // namespace clustermim::gpu
