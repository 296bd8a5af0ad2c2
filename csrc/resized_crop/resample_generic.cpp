#include "resized_crop/resample_plain.h"

namespace clustermim {

extern const ResampleKernels kResampleGeneric;
const ResampleKernels kResampleGeneric = {plain_rows, plain_columns};

}  // namespace clustermim
