// Which instruction-set path the kernels take, asked of the machine once.
#pragma once

#include "core/status.h"

namespace clustermim {

// Each has what stands before it. avx512_vnni adds 8-bit dot products, amx tiles of 8-bit integers
// and bfloat16 (and AVX512_BF16).
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, avx512_vnni = 3, amx = 4 };
constexpr int kNumIsas = 5;

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);  // this build has the unit
bool isa_usable(Isa isa);    // this machine (and its operating system) can run it

// The path in use: the best usable one, or what the environment variable CLUSTERMIM_ISA or set_isa
// asked for.
Isa current_isa();
Status set_isa(const char* name);  // "auto" goes back to the best usable one
Status check_isa_environment();    // an unusable CLUSTERMIM_ISA is an error, not ignored

}  // namespace clustermim
