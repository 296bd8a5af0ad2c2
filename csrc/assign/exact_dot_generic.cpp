#define CMIM_VECTOR_BYTES 16
#include "assign/exact_dot_kernel.h"

namespace clustermim {

extern const ExactDotKernel kExactDotGeneric;
const ExactDotKernel kExactDotGeneric = kThisUnit;

}  // namespace clustermim
