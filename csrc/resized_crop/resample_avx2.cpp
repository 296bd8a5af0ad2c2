#include "resized_crop/resample_plain.h"

namespace clustermim {

extern const ResampleKernels kResampleAvx2;
const ResampleKernels kResampleAvx2 = {plain_rows, plain_columns};

}  // namespace clustermim
