// The rows of a block in the order of their centroids.
#pragma once

#include <cstdint>
#include <vector>

namespace clustermim {

// Memory: O(K + rows of a block), made once and used for every block.
class RowGroups {
 public:
  struct Group {
    int64_t id;
    int64_t begin, end;  // positions in the order
    int64_t rows() const { return end - begin; }
  };

  explicit RowGroups(int64_t num_clusters) : slot_(num_clusters, 0) {}

  // Groups in the order in which their centroids first appear, a group's rows in theirs; rows of
  // id -1 are in none.
  void build(const int64_t* ids, int64_t count) {
    groups_.clear();
    for (int64_t r = 0; r < count; ++r) {
      const int64_t id = ids[r];
      if (id < 0) continue;
      if (slot_[id] == 0) groups_.push_back({id, 0, 0});
      ++slot_[id];
    }
    int32_t position = 0;
    for (Group& group : groups_) {
      group.begin = position;
      position += slot_[group.id];
      group.end = position;
      slot_[group.id] = static_cast<int32_t>(group.begin);
    }
    order_.resize(position);
    for (int64_t r = 0; r < count; ++r) {
      if (ids[r] >= 0) order_[slot_[ids[r]]++] = static_cast<int32_t>(r);
    }
    for (const Group& group : groups_) slot_[group.id] = 0;
  }

  const std::vector<Group>& groups() const { return groups_; }
  const int32_t* order(const Group& group) const { return order_.data() + group.begin; }
  // Rows of the groups after this one.
  int64_t rows_after(const Group& group) const {
    return static_cast<int64_t>(order_.size()) - group.end;
  }

 private:
  std::vector<int32_t> slot_;  // [K], zeros between calls
  std::vector<Group> groups_;
  std::vector<int32_t> order_;
};

}  // namespace clustermim
