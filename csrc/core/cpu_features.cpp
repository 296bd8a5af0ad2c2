#include "core/cpu_features.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace clustermim {
namespace {

#if defined(__x86_64__)
constexpr bool kX86 = true;
#else
constexpr bool kX86 = false;
#endif

std::atomic<int> forced_isa{-1};

// The tiles' state is large: Linux gives it to a process that asks for it, once for all threads.
bool amx_usable() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa best_isa() {
  static const Isa best = [] {
    int isa = kNumIsas - 1;
    while (!isa_usable(static_cast<Isa>(isa))) --isa;
    return static_cast<Isa>(isa);
  }();
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
                       "ISA path must be auto, generic, avx2, avx512, avx512_vnni or amx, got '%s'",
                       name);
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
    case Isa::avx512_vnni: return "avx512_vnni";
    case Isa::amx: return "amx";
  }
  return "unknown";
}

bool isa_compiled(Isa isa) {
  return isa == Isa::generic || kX86;
}

bool isa_usable(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // includes the operating system's XSAVE support
  switch (isa) {
    case Isa::generic: return true;
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return isa_usable(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw");
    case Isa::avx512_vnni: return isa_usable(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::amx: {
      static const bool usable =
          isa_usable(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16") && amx_usable();
      return usable;
    }
  }
  return false;
#else
  return isa == Isa::generic;
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
