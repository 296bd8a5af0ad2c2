#define CMIM_VECTOR_BYTES 64
#include "assign/exact_dot_kernel.h"

namespace clustermim {

extern const ExactDotKernel kExactDotAvx512;
const ExactDotKernel kExactDotAvx512 = kThisUnit;

}  // namespace clustermim
