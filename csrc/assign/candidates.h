// The candidates of one row, from the columns that its threshold did not exclude.
#pragma once

#include <cstdint>
#include <vector>

#include "assign/columns.h"

namespace clustermim {

// Tries each hit's own bounds; entries: what is left and the far entries, ascending. False: there
// were no hits (no score was a number) or more than `capacity`: every entry is a candidate.
bool take_candidates(const Columns& columns, const ScoreError& error, const RowBounds& row,
                     const int32_t* hit_columns, const float* hit_scores, int64_t count,
                     int64_t capacity, std::vector<int32_t>& entries);

}  // namespace clustermim
