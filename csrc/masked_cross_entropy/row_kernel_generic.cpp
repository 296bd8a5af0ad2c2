#define CMIM_VECTOR_BYTES 16
#include "masked_cross_entropy/row_kernel_body.h"

namespace clustermim {

extern const RowKernel kRowKernelGeneric;
const RowKernel kRowKernelGeneric = kThisUnit;

}  // namespace clustermim
