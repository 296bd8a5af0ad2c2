#define CMIM_VECTOR_BYTES 32
#include "masked_cross_entropy/row_kernel_body.h"

namespace clustermim {

extern const RowKernel kRowKernelAvx2;
const RowKernel kRowKernelAvx2 = kThisUnit;

}  // namespace clustermim
