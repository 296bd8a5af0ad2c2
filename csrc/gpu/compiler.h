// CUDA C++ to machine code by NVRTC, a library that torch's CUDA packages bring along. It needs no
// GPU and no driver. Calls may come from several threads.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/status.h"

namespace clustermim::gpu {

// Of the NVRTC at `library` (a path, or a name for dlopen).
Status compiler_version(const char* library, int* major, int* minor);

struct CompileArgs {
  const char* library = nullptr;
  const char* name = nullptr;  // of the source, in messages
  const char* source = nullptr;
  std::vector<std::pair<std::string, std::string>> headers;  // as they are included, and their text
  std::vector<std::string> options;  // --gpu-architecture=sm_..a among them: a real architecture
};

// The cubin, and the compiler's log: warnings, or with an error what is wrong.
struct Compiled {
  std::string cubin;
  std::string log;
};
Status compile(const CompileArgs& args, Compiled* out);

}  // namespace clustermim::gpu
