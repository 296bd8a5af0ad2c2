// Every entry point of the core returns a Status; nothing throws across it.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace clustermim {

enum class StatusCode { ok, invalid_argument, index_error, out_of_memory, unsupported };

struct Status {
  StatusCode code = StatusCode::ok;
  char message[240] = "";

  bool ok() const { return code == StatusCode::ok; }

  __attribute__((format(printf, 2, 3))) static Status error(StatusCode code, const char* format,
                                                            ...) {
    Status status;
    status.code = code;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(status.message, sizeof(status.message), format, arguments);
    va_end(arguments);
    return status;
  }
};

#define CMIM_RETURN_IF_ERROR(expression)       \
  do {                                         \
    const ::clustermim::Status s = expression; \
    if (!s.ok()) return s;                     \
  } while (0)

// A null pointer for data that exists means a fake or meta tensor reached the kernel.
inline Status check_pointer(const char* op, const char* argument, const void* pointer,
                            bool needed) {
  if (needed && pointer == nullptr) {
    return Status::error(StatusCode::invalid_argument, "%s: %s has no data (null pointer)", op,
                         argument);
  }
  return Status();
}

}  // namespace clustermim
