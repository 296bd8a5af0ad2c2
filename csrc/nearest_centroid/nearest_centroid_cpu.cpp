#include "assign/assigner.h"
#include "assign/check_matrix.h"
#include "core/kernel_call.h"
#include "nearest_centroid/nearest_centroid.h"

namespace clustermim {

Status nearest_centroid_cpu(const NearestCentroidArgs& args, TierCounts* tiers) {
  constexpr const char* op = "nearest_centroid";
  CMIM_RETURN_IF_ERROR(check_matrix(op, "x", args.x));
  CMIM_RETURN_IF_ERROR(check_centroids(op, args.centroids, args.x.cols));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "ids", args.ids, args.x.rows > 0));
  return kernel_call(op, [&] {
    Codebook codebook;
    Status status;
    const bool known = visit_matrix_rows(args.x, [&](const auto& source) {
      status = prepare_codebook(source, args.centroids, args.metric, args.threads,
                                args.value != nullptr, codebook);
      if (!status.ok()) return;
      status = assign_rows(source, codebook, args.threads, args.ids, args.value, tiers);
    });
    if (!known) return Status::error(StatusCode::invalid_argument, "%s: x must be floating", op);
    return status;
  });
}

}  // namespace clustermim
