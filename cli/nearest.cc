#include "cli/nearest.h"

#include <algorithm>

namespace binarymos {

int EditDistance(std::string_view a, std::string_view b) {
  const size_t columns = b.size() + 1;
  std::vector<int> before(columns);  // row i - 2
  std::vector<int> above(columns);   // row i - 1
  std::vector<int> row(columns);
  for (size_t j = 0; j < columns; ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    before.swap(above);
    above.swap(row);
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j < columns; ++j) {
      const int replaced = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replaced, above[j] + 1, row[j - 1] + 1});
      const bool swapped =
          i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

std::string NearestMatch(std::string_view name,
                         const std::vector<std::string>& candidates) {
  // A third of the name may be wrong, but never all of it.
  int limit = std::max<int>(1, static_cast<int>(name.size()) / 3);
  const std::string* nearest = nullptr;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(name, candidate);
    if (distance > limit) continue;
    nearest = &candidate;
    limit = distance - 1;
  }
  return nearest == nullptr ? "" : *nearest;
}

std::string DidYouMean(std::string_view name,
                       const std::vector<std::string>& candidates) {
  const std::string nearest = NearestMatch(name, candidates);
  return nearest.empty() ? "" : "; did you mean '" + nearest + "'?";
}

}  // namespace binarymos
