#include "core/build_info.h"

namespace clustermim {

const char* build_compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}
const char* build_type() {
  return CLUSTERMIM_BUILD_TYPE;
}
const char* build_flags() {
  return CLUSTERMIM_BUILD_FLAGS;
}

}  // namespace clustermim
