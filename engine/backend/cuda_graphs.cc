#include "engine/backend/cuda_graphs.h"

#include <algorithm>

namespace binarymos {

CudaGraphs::Entry& CudaGraphs::Use(const CudaGraphKey& key) {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(),
                   [&](const Entry& entry) { return entry.key == key; });
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
  } else {
    if (entries_.size() == kMaxEntries) entries_.pop_back();
    entries_.push_front({.key = key});
  }
  ++entries_.front().uses;
  return entries_.front();
}

}  // namespace binarymos
