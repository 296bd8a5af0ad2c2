#define CMIM_VECTOR_BYTES 32
#include "assign/exact_dot_kernel.h"

namespace clustermim {

extern const ExactDotKernel kExactDotAvx2;
const ExactDotKernel kExactDotAvx2 = kThisUnit;

}  // namespace clustermim
