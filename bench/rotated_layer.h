// Random layers to measure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/backend.h"

namespace binarymos {

struct LayerShape {
  int64_t in;
  int64_t out;
};

// INVALID_ARGUMENT unless `kind` is binarymos, onebit or float16.
absl::Status CheckLayerKind(const std::string& kind);

// More than the last-level caches of the machines we know.
inline constexpr size_t kRotatedBytes = size_t{320} << 20;

// Copies of one random layer, enough of them to push each other out of the
// caches: kRotatedBytes in all.
class RotatedLayer {
 public:
  // REQUIRES: CheckLayerKind(kind). Errors of Pack.
  static absl::StatusOr<std::shared_ptr<RotatedLayer>> Create(
      Backend& backend, const std::string& kind, LayerShape shape);

  const PackedLinear& Next() {
    next_ = (next_ + 1) % copies_.size();
    return *copies_[next_];
  }

 private:
  std::vector<std::unique_ptr<PackedLinear>> copies_;
  size_t next_ = 0;
};

// Rows of a batch and room for what a layer makes of them.
struct LayerActivations {
  Tensor x;  // [tokens, in] f32, random
  Tensor y;  // [tokens, out] f32

  static absl::StatusOr<LayerActivations> Create(Backend& backend,
                                                 LayerShape shape, int tokens);
};

}  // namespace binarymos
