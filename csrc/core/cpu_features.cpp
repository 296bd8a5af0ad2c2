#include "core/cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace clustermim {
namespace {

#if defined(__x86_64__)
constexpr bool kX86 = true;
#else
constexpr bool kX86 = false;
#endif

std::atomic<int> forced_isa{-1};

Isa best_isa() {
  static const Isa best = isa_usable(Isa::avx512) ? Isa::avx512
                          : isa_usable(Isa::avx2) ? Isa::avx2
                                                  : Isa::generic;
  return best;
}

Status find_isa(const char* name, int& found) {
  for (int i = 0; i < kNumIsas; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::strcmp(name, isa_name(isa)) != 0) continue;
    if (!isa_usable(isa)) {
      return Status::error(StatusCode::unsupported, "ISA path %s cannot run on this machine", name);
    }
    found = i;
    return Status();
  }
  return Status::error(StatusCode::invalid_argument,
                       "ISA path must be auto, generic, avx2 or avx512, got '%s'", name);
}

const char* environment_isa() {
  const char* name = std::getenv("CLUSTERMIM_ISA");
  return name && *name && std::strcmp(name, "auto") != 0 ? name : nullptr;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "unknown";
}

bool isa_compiled(Isa isa) {
  return isa == Isa::generic || kX86;
}

bool isa_usable(Isa isa) {
  if (isa == Isa::generic) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();  // includes the operating system's XSAVE support
  if (isa == Isa::avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

Status check_isa_environment() {
  int found = -1;
  const char* name = environment_isa();
  return name ? find_isa(name, found) : Status();
}

Isa current_isa() {
  int isa = forced_isa.load(std::memory_order_relaxed);
  if (isa < 0) {
    static const int from_environment = [] {
      int found = -1;
      const char* name = environment_isa();
      return name && find_isa(name, found).ok() ? found : -1;
    }();
    isa = from_environment;
  }
  return isa < 0 ? best_isa() : static_cast<Isa>(isa);
}

Status set_isa(const char* name) {
  int found = -1;
  if (std::strcmp(name, "auto") != 0) CMIM_RETURN_IF_ERROR(find_isa(name, found));
  forced_isa.store(found, std::memory_order_relaxed);
  return Status();
}

}  // namespace clustermim
