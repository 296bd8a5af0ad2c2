#define CMIM_VECTOR_BYTES 64
#include "masked_cross_entropy/row_kernel_body.h"

namespace clustermim {

extern const RowKernel kRowKernelAvx512;
const RowKernel kRowKernelAvx512 = kThisUnit;

}  // namespace clustermim
