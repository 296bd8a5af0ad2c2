// A codebook for given rows: whether to project is a question about both.
#include <algorithm>
#include <utility>
#include <vector>

#include "assign/assigner.h"

namespace clustermim {
namespace {

// Estimated time of a row, in products of whole rows with one centroid. A candidate that is
// re-scored reads its centroid from afar: as much as many products on tiles, or a few without.
double row_cost(const Codebook& book, double candidates) {
  const bool tiles = book.kernel->format == Format::bfloat16;
  const Projection& p = book.projection;
  const double dim = static_cast<double>(book.dim), columns = static_cast<double>(book.entries());
  const double inside = static_cast<double>(p.size) / dim;
  const double products =
      p.size ? p.parts * static_cast<double>(p.size) + inside * columns : columns;
  return products + candidates * (tiles ? 100.0 : 20.0);
}

}  // namespace

template <typename T>
Status prepare_codebook(const RowSource<T>& source, const MatrixView& centroids, Metric metric,
                        int threads, bool keep_values, Codebook& codebook) {
  const int64_t total = source.num_rows();
  CMIM_RETURN_IF_ERROR(codebook.prepare(centroids, metric, threads, keep_values, total));
  if (codebook.projection.size == 0 || projection_mode() == ProjectionMode::always) return Status();
  // Rows from everywhere: neighbours are patches of one image, all easy or all hard.
  constexpr int64_t kSample = 256;
  // Far more made it project, unless it was forced to when `prepare` asked for the mode.
  if (total < kSample) return Status();
  Assigner<T> assigner(codebook);
  const int64_t block = std::min(kSample, block_rows(codebook));
  std::vector<T> rows(block * codebook.dim), scratch(codebook.dim);
  std::vector<int64_t> ids(block);
  for (int64_t i = 0; i < kSample; i += block) {
    const int64_t count = std::min(block, kSample - i);
    for (int64_t r = 0; r < count; ++r) {
      int64_t stride = 0;
      const T* row = source.rows((i + r) * total / kSample, 1, scratch.data(), &stride);
      std::copy_n(row, codebook.dim, rows.data() + r * codebook.dim);
    }
    assigner.assign(rows.data(), codebook.dim, count, ids.data(), nullptr);
  }
  const double left = static_cast<double>(assigner.rescored) / static_cast<double>(kSample);
  const bool tiles = codebook.kernel->format == Format::bfloat16;
  const double whole_cost = static_cast<double>(codebook.entries()) + (tiles ? 60.0 : 1.0);
  // What is saved has to be clear: the preparation was not free.
  if (row_cost(codebook, left) < 0.85 * whole_cost) return Status();
  Codebook whole;
  whole.may_project = false;
  CMIM_RETURN_IF_ERROR(whole.prepare(centroids, metric, threads, keep_values, total));
  codebook = std::move(whole);
  return Status();
}

template Status prepare_codebook(const RowSource<float>&, const MatrixView&, Metric, int, bool,
                                 Codebook&);
template Status prepare_codebook(const RowSource<double>&, const MatrixView&, Metric, int, bool,
                                 Codebook&);

}  // namespace clustermim
