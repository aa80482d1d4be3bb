// Recordings of steps by what they depend on.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <utility>

#include "engine/backend/backend.h"
#include "engine/backend/cuda_driver.h"

namespace binarymos {

// Everything about a step that its recording holds. What else changes from step
// to step, kernels read from device memory.
struct CudaGraphKey {
  RepeatKey operations;
  int num_tokens = 0;  // a token per sequence
  int num_logit_rows = 0;
  int num_splits = 0;        // of the attention, rounded up
  int tokens_per_block = 0;  // of queries
  friend bool operator==(const CudaGraphKey&, const CudaGraphKey&) = default;
};

// The most recently used keys, each with a recording from its second use on: a
// shape that comes once is not worth one. Numbers of tokens are exact instead
// of padded to a few: a row more costs a step more than a recording saves
// (docs/benchmarks/cuda.md). Confined to the backend's thread.
class CudaGraphs {
 public:
  static constexpr size_t kMaxEntries = 64;

  struct Entry {
    CudaGraphKey key;
    int64_t uses = 0;
    std::unique_ptr<CudaGraph> graph;  // null until recorded
    bool refused = false;              // recording it failed
  };

  // The entry of `key`, new if need be, which counts this use and becomes the
  // most recent one; the least recent one goes if there are too many. Valid
  // until the next call.
  Entry& Use(const CudaGraphKey& key);

  void Clear() { entries_.clear(); }
  bool empty() const { return entries_.empty(); }

 private:
  std::list<Entry> entries_;  // most recent first
};

}  // namespace binarymos
