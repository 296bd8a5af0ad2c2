#pragma once

#include <new>

#include "core/status.h"

namespace clustermim {

// Runs a kernel's body, which may allocate workspace, and turns bad_alloc into a Status.
template <typename Body>
Status guard_memory(const char* op, Body&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status::error(StatusCode::out_of_memory, "%s: not enough memory for its workspace", op);
  }
}

}  // namespace clustermim
