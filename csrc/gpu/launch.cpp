#include "gpu/launch.h"

#include "gpu/driver.h"

namespace clustermim::gpu {
namespace {

// torch skips making a context current on a thread whose device is the default one already.
Status need_context(int device) {
  CuContext context = nullptr;
  const CuResult found = driver().cuCtxGetCurrent(&context);
  if (found == kCuSuccess && context != nullptr) return Status();
  if (found != kCuNotInitialized) {
    CMIM_RETURN_IF_ERROR(driver_status(found, "cuCtxGetCurrent"));
  }
  CuDevice handle = 0;
  CMIM_DRIVER_CALL(cuInit, 0);
  CMIM_DRIVER_CALL(cuDeviceGet, &handle, device);
  CMIM_DRIVER_CALL(cuDevicePrimaryCtxRetain, &context, handle);
  CMIM_DRIVER_CALL(cuCtxSetCurrent, context);
  return Status();
}

unsigned product(const unsigned (&sizes)[3]) {
  return sizes[0] * sizes[1] * sizes[2];
}

}  // namespace

Status load_kernel(const LoadArgs& args, CuFunction* kernel) {
  CMIM_RETURN_IF_ERROR(check_driver());
  CMIM_RETURN_IF_ERROR(check_pointer("load_kernel", "cubin", args.cubin, true));
  CMIM_RETURN_IF_ERROR(need_context(args.device));
  CuModule module = nullptr;
  CMIM_DRIVER_CALL(cuModuleLoadData, &module, args.cubin);
  CMIM_DRIVER_CALL(cuModuleGetFunction, kernel, module, args.name);
  CMIM_DRIVER_CALL(cuFuncSetAttribute, *kernel, kCuMaxDynamicSharedBytes, args.shared_bytes);
  return Status();
}

Status launch_kernel(const LaunchArgs& args) {
  CMIM_RETURN_IF_ERROR(check_driver());
  CMIM_RETURN_IF_ERROR(check_pointer("launch_kernel", "kernel", args.kernel, true));
  if (args.grid[0] == 0 || args.grid[1] == 0 || args.grid[2] == 0) return Status();
  CMIM_RETURN_IF_ERROR(need_context(args.device));
  CuLaunchAttribute cluster = {kCuClusterDimension, {}, {}};
  CuLaunchConfig config = {};
  for (int i = 0; i < 3; ++i) {
    config.grid[i] = args.grid[i];
    config.block[i] = args.block[i];
    cluster.value.cluster[i] = args.cluster[i];
  }
  config.shared_bytes = args.shared_bytes;
  config.stream = args.stream;
  config.attributes = &cluster;
  config.num_attributes = product(args.cluster) == 1 ? 0 : 1;
  CMIM_DRIVER_CALL(cuLaunchKernelEx, &config, args.kernel, args.arguments, nullptr);
  return Status();
}

}  // namespace clustermim::gpu
