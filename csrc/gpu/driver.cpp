#include "gpu/driver.h"

#include <dlfcn.h>

namespace clustermim::gpu {
namespace {

Status without(const Driver& driver, const char* name) {
  int version = 0;
  if (driver.cuDriverGetVersion != nullptr) driver.cuDriverGetVersion(&version);
  return Status::error(StatusCode::unsupported,
                       "the CUDA driver must be for CUDA 12.0 or newer, got one for %d.%d, which "
                       "has no %s: update the driver",
                       version / 1000, version % 1000 / 10, name);
}

Driver look_up() {
  Driver driver;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    driver.status = Status::error(StatusCode::unsupported, "no CUDA driver");
    return driver;
  }
#define CMIM_LOOK_UP(name, arguments)                                           \
  driver.name = reinterpret_cast<CuResult(*) arguments>(dlsym(library, #name)); \
  if (driver.name == nullptr && driver.status.ok()) driver.status = without(driver, #name);
  CMIM_DRIVER_FUNCTIONS(CMIM_LOOK_UP)
#undef CMIM_LOOK_UP
  return driver;
}

}  // namespace

const Driver& driver() {
  static const Driver found = look_up();
  return found;
}

Status check_driver() {
  return driver().status;
}

Status driver_status(CuResult result, const char* call) {
  if (result == kCuSuccess) return Status();
  const char *name = nullptr, *text = nullptr;
  driver().cuGetErrorName(result, &name);
  driver().cuGetErrorString(result, &text);
  return Status::error(StatusCode::unsupported, "%s: %s (%d): %s", call,
                       name != nullptr ? name : "error", result,
                       text != nullptr ? text : "unknown to this driver");
}

}  // namespace clustermim::gpu
