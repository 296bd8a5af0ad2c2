// Always inlined, for the vector code of ISA units: a call would pass vectors through memory, and a
// copy that the linker keeps could be another unit's.
#pragma once

#define CMIM_INLINE inline __attribute__((always_inline))
