// The CUDA driver, looked up when first asked for: nothing links to CUDA, and a machine without a
// driver imports the core all the same. Calls may come from several threads.
#pragma once

#include "core/status.h"
#include "gpu/driver_abi.h"

namespace clustermim::gpu {

struct Driver {
#define CMIM_DECLARE(name, arguments) CuResult(*name) arguments = nullptr;
  CMIM_DRIVER_FUNCTIONS(CMIM_DECLARE)
#undef CMIM_DECLARE
  Status status;  // not ok: some function is null
};

const Driver& driver();

// ok where kernels can be loaded, else why not: "no CUDA driver", or that it is too old. Does not
// initialise CUDA.
Status check_driver();

// The error of a call, with the driver's own words.
Status driver_status(CuResult result, const char* call);

}  // namespace clustermim::gpu

// After check_driver().
#define CMIM_DRIVER_CALL(name, ...) \
  CMIM_RETURN_IF_ERROR(             \
      ::clustermim::gpu::driver_status(::clustermim::gpu::driver().name(__VA_ARGS__), #name))
