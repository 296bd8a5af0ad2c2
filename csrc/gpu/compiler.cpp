#include "gpu/compiler.h"

#include <dlfcn.h>

#include <cstddef>
#include <map>
#include <mutex>

namespace clustermim::gpu {
namespace {

using Program = struct ProgramOpaque*;

// nvrtc.h's functions, as X(name, arguments); they return 0 for success.
#define CMIM_NVRTC_FUNCTIONS(X)                                                                    \
  X(nvrtcVersion, (int* major, int* minor))                                                        \
  X(nvrtcCreateProgram, (Program * program, const char* source, const char* name, int num_headers, \
                         const char* const* texts, const char* const* names))                      \
  X(nvrtcDestroyProgram, (Program * program))                                                      \
  X(nvrtcCompileProgram, (Program program, int num_options, const char* const* options))           \
  X(nvrtcGetCUBINSize, (Program program, size_t* size))                                            \
  X(nvrtcGetCUBIN, (Program program, char* cubin))                                                 \
  X(nvrtcGetProgramLogSize, (Program program, size_t* size))                                       \
  X(nvrtcGetProgramLog, (Program program, char* log))

struct Nvrtc {
#define CMIM_DECLARE(name, arguments) int(*name) arguments = nullptr;
  CMIM_NVRTC_FUNCTIONS(CMIM_DECLARE)
#undef CMIM_DECLARE
  const char* (*nvrtcGetErrorString)(int) = nullptr;
  Status status;
};

// NVRTC opens this library by its name alone, which the loader knows only if it is loaded; packages
// of 12.x and 13.2 say where it is, that of 13.0 does not.
void load_builtins(const Nvrtc& nvrtc, const std::string& path) {
  const size_t slash = path.rfind('/');
  int major = 0, minor = 0;
  if (slash == std::string::npos || nvrtc.nvrtcVersion(&major, &minor) != 0) return;
  const std::string version = std::to_string(major) + "." + std::to_string(minor);
  const std::string builtins = path.substr(0, slash) + "/libnvrtc-builtins.so." + version;
  dlopen(builtins.c_str(), RTLD_NOW | RTLD_LOCAL);  // may be elsewhere: compile() tells
}

Nvrtc look_up(const char* path) {
  Nvrtc nvrtc;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    nvrtc.status =
        Status::error(StatusCode::unsupported, "NVRTC could not be loaded: %s", dlerror());
    return nvrtc;
  }
  const auto find = [&](const char* name) {
    void* found = dlsym(library, name);
    if (found == nullptr && nvrtc.status.ok()) {
      nvrtc.status = Status::error(StatusCode::unsupported, "%s has no %s", path, name);
    }
    return found;
  };
#define CMIM_LOOK_UP(name, arguments) nvrtc.name = reinterpret_cast<int(*) arguments>(find(#name));
  CMIM_NVRTC_FUNCTIONS(CMIM_LOOK_UP)
#undef CMIM_LOOK_UP
  nvrtc.nvrtcGetErrorString = reinterpret_cast<const char* (*)(int)>(find("nvrtcGetErrorString"));
  if (nvrtc.status.ok()) load_builtins(nvrtc, path);
  return nvrtc;
}

const Nvrtc& nvrtc_at(const char* path) {
  static std::mutex mutex;
  static auto* found = new std::map<std::string, Nvrtc>;  // never destroyed: threads may outlive it
  const std::lock_guard<std::mutex> lock(mutex);
  const auto at = found->find(path);
  return at != found->end() ? at->second : found->emplace(path, look_up(path)).first->second;
}

Status nvrtc_status(const Nvrtc& nvrtc, int result, const char* call) {
  if (result == 0) return Status();
  return Status::error(StatusCode::unsupported, "%s: %s", call, nvrtc.nvrtcGetErrorString(result));
}

#define CMIM_NVRTC_CALL(nvrtc, name, ...) \
  CMIM_RETURN_IF_ERROR(nvrtc_status(nvrtc, (nvrtc).name(__VA_ARGS__), #name))

Status read_log(const Nvrtc& nvrtc, Program program, std::string* log) {
  size_t size = 0;
  CMIM_NVRTC_CALL(nvrtc, nvrtcGetProgramLogSize, program, &size);
  log->resize(size);
  if (size > 0) CMIM_NVRTC_CALL(nvrtc, nvrtcGetProgramLog, program, log->data());
  while (!log->empty() && log->back() == '\0') log->pop_back();
  return Status();
}

Status run(const Nvrtc& nvrtc, Program program, const CompileArgs& args, Compiled* out) {
  std::vector<const char*> options;
  for (const std::string& option : args.options) options.push_back(option.c_str());
  const int result =
      nvrtc.nvrtcCompileProgram(program, static_cast<int>(options.size()), options.data());
  CMIM_RETURN_IF_ERROR(read_log(nvrtc, program, &out->log));
  CMIM_RETURN_IF_ERROR(nvrtc_status(nvrtc, result, args.name));
  size_t size = 0;
  CMIM_NVRTC_CALL(nvrtc, nvrtcGetCUBINSize, program, &size);
  if (size == 0) {
    return Status::error(StatusCode::invalid_argument,
                         "compile: options must name a real architecture (sm_90a), got none");
  }
  out->cubin.resize(size);
  CMIM_NVRTC_CALL(nvrtc, nvrtcGetCUBIN, program, out->cubin.data());
  return Status();
}

}  // namespace

Status compiler_version(const char* library, int* major, int* minor) {
  const Nvrtc& nvrtc = nvrtc_at(library);
  CMIM_RETURN_IF_ERROR(nvrtc.status);
  CMIM_NVRTC_CALL(nvrtc, nvrtcVersion, major, minor);
  return Status();
}

Status compile(const CompileArgs& args, Compiled* out) {
  const Nvrtc& nvrtc = nvrtc_at(args.library);
  CMIM_RETURN_IF_ERROR(nvrtc.status);
  std::vector<const char*> names, texts;
  for (const auto& [name, text] : args.headers) {
    names.push_back(name.c_str());
    texts.push_back(text.c_str());
  }
  Program program = nullptr;
  CMIM_NVRTC_CALL(nvrtc, nvrtcCreateProgram, &program, args.source, args.name,
                  static_cast<int>(names.size()), texts.data(), names.data());
  const Status status = run(nvrtc, program, args, out);
  nvrtc.nvrtcDestroyProgram(&program);
  return status;
}

}  // namespace clustermim::gpu
