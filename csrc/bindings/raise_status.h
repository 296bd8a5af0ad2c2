// The one place where a Status becomes a Python exception.
#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>

#include "core/status.h"

namespace clustermim::bindings {

inline void raise_if_error(const Status& status) {
  switch (status.code) {
    case StatusCode::ok: return;
    case StatusCode::invalid_argument: throw pybind11::value_error(status.message);
    case StatusCode::index_error: throw pybind11::index_error(status.message);
    case StatusCode::out_of_memory:
      PyErr_SetString(PyExc_MemoryError, status.message);
      throw pybind11::error_already_set();
    case StatusCode::unsupported: throw std::runtime_error(status.message);
  }
}

// Tensor addresses come as integers (tensor.data_ptr()); 0 stands for "not given".
template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace clustermim::bindings
