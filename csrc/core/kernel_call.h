#pragma once

#include <new>

#include "core/float_environment.h"
#include "core/status.h"

namespace clustermim {

// Runs the body of a kernel's entry point: in the default float environment, whatever the caller
// set, and with a failed allocation of workspace as a Status.
template <typename Body>
Status kernel_call(const char* op, Body&& body) {
  const DefaultFloatEnvironment environment;
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status::error(StatusCode::out_of_memory, "%s: not enough memory for its workspace", op);
  }
}

}  // namespace clustermim
