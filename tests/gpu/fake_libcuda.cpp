// A CUDA driver that runs nothing: it writes down what it is called with, against NVIDIA's own
// cuda.h. Environment: FAKE_CUDA_LOG, the file; FAKE_CUDA_FAIL, "name=error" of a call that fails;
// FAKE_CUDA_ARGUMENTS, the bytes of each argument of the kernel, "8,4".
#include <cuda.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

std::atomic<bool> initialised{false};
thread_local CUcontext current = nullptr;

void note(const char* format, ...) {
  static FILE* file = std::fopen(std::getenv("FAKE_CUDA_LOG"), "a");
  char line[4096];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  std::fprintf(file, "%s\n", line);
  std::fflush(file);
}

CUresult result_of(const char* call) {
  const char* fail = std::getenv("FAKE_CUDA_FAIL");
  const size_t length = std::strlen(call);
  if (fail != nullptr && std::strncmp(fail, call, length) == 0 && fail[length] == '=') {
    return static_cast<CUresult>(std::atoi(fail + length + 1));
  }
  return CUDA_SUCCESS;
}

std::string hex(const void* from, size_t bytes) {
  std::string text;
  char digits[3];
  for (size_t i = 0; i < bytes; ++i) {
    std::snprintf(digits, sizeof(digits), "%02x", static_cast<const unsigned char*>(from)[i]);
    text += digits;
  }
  return text;
}

template <typename T>
T handle(intptr_t value) {
  return reinterpret_cast<T>(value);
}

}  // namespace

extern "C" {

CUresult cuDriverGetVersion(int* version) {
  *version = 12020;
  return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) {
  note("cuInit %u", flags);
  initialised = true;
  return result_of("cuInit");
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal + 70;
  return result_of("cuDeviceGet");
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current;
  return initialised ? result_of("cuCtxGetCurrent") : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  current = context;
  return result_of("cuCtxSetCurrent");
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  note("cuDevicePrimaryCtxRetain %d", device);
  *context = handle<CUcontext>(device);
  return result_of("cuDevicePrimaryCtxRetain");
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  const bool is_elf = std::memcmp(image, "\177ELF", 4) == 0;
  note("cuModuleLoadData %s in %ld", is_elf ? "ELF" : static_cast<const char*>(image),
       reinterpret_cast<intptr_t>(current));
  *module = handle<CUmodule>(2);
  return result_of("cuModuleLoadData");
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  note("cuModuleGetFunction %ld %s", reinterpret_cast<intptr_t>(module), name);
  *function = handle<CUfunction>(3);
  return result_of("cuModuleGetFunction");
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  note("cuFuncSetAttribute %ld %s %d", reinterpret_cast<intptr_t>(function),
       attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? "shared bytes" : "?", value);
  return result_of("cuFuncSetAttribute");
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void** arguments,
                          void** extra) {
  std::string line = "cuLaunchKernelEx " + std::to_string(reinterpret_cast<intptr_t>(function));
  for (const unsigned n : {c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                           c->blockDimZ, c->sharedMemBytes}) {
    line += " " + std::to_string(n);
  }
  line += " stream " + std::to_string(reinterpret_cast<intptr_t>(c->hStream));
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    const auto& dim = c->attrs[i].value.clusterDim;
    line += c->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION ? " cluster" : " ?";
    for (const unsigned n : {dim.x, dim.y, dim.z}) line += " " + std::to_string(n);
  }
  const char* sizes = std::getenv("FAKE_CUDA_ARGUMENTS");
  for (; sizes != nullptr && *sizes != '\0'; ++arguments) {
    char* rest = nullptr;
    line += " " + hex(*arguments, std::strtoul(sizes, &rest, 10));
    if (reinterpret_cast<uintptr_t>(*arguments) % 128 != 0) line += " not aligned";
    sizes = *rest == ',' ? rest + 1 : rest;
  }
  note("%s%s", line.c_str(), extra == nullptr ? "" : " extra");
  return result_of("cuLaunchKernelEx");
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  std::string line = "cuTensorMapEncodeTiled type " + std::to_string(type) + " at " +
                     std::to_string(reinterpret_cast<uintptr_t>(address)) + " sizes";
  for (cuuint32_t i = 0; i < rank; ++i) line += " " + std::to_string(sizes[i]);
  line += " strides";
  for (cuuint32_t i = 0; i + 1 < rank; ++i) line += " " + std::to_string(strides[i]);
  line += " box";
  for (cuuint32_t i = 0; i < rank; ++i) line += " " + std::to_string(box[i]);
  line += " steps";
  for (cuuint32_t i = 0; i < rank; ++i) line += " " + std::to_string(steps[i]);
  note("%s interleave %d swizzle %d promotion %d fill %d%s", line.c_str(), interleave, swizzle,
       promotion, fill, reinterpret_cast<uintptr_t>(map) % 128 == 0 ? "" : " not aligned");
  std::memset(map, 0xa5, sizeof(*map));
  return result_of("cuTensorMapEncodeTiled");
}

CUresult cuGetErrorName(CUresult error, const char** text) {
  if (error != CUDA_ERROR_NO_BINARY_FOR_GPU) return CUDA_ERROR_INVALID_VALUE;
  *text = "CUDA_ERROR_NO_BINARY_FOR_GPU";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  if (error != CUDA_ERROR_NO_BINARY_FOR_GPU) return CUDA_ERROR_INVALID_VALUE;
  *text = "no kernel image is available for execution on the device";
  return CUDA_SUCCESS;
}

}  // extern "C"
