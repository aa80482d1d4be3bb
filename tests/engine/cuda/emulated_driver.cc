#include "tests/engine/cuda/emulated_driver.h"

#include <cstdint>
#include <variant>

#include "engine/core/float16.h"

namespace binarymos {
namespace {

template <typename K>
void Note(const K&, EmulatedDevice&) {}
template <int kTiles, int kRowWarps>
void Note(const cuda::FastBinaryMos<kTiles, kRowWarps>& kernel,
          EmulatedDevice& device) {
  ++device.num_fast_linears;
  device.rows_of_fast_block = kernel.kRows;
}
template <int kPlanes, int kParts>
void Note(const cuda::WarpgroupBinaryMos<kPlanes, kParts>&,
          EmulatedDevice& device) {
  ++device.num_warpgroup_linears;
}
void Note(const cuda::MergeAttention&, EmulatedDevice& device) {
  ++device.num_merges;
}

}  // namespace

void EmulatedDriver::Run(const cuda::Kernel& kernel) {
  ++num_ran_;
  std::visit(
      [this](const auto& one) {
        Note(one, *device_);
        RunEmulated(one, device_->order);
      },
      kernel);
}

void EmulatedDriver::Run(const HalfProduct& product) {
  const auto* x = static_cast<const uint16_t*>(product.x);
  const auto* weight = static_cast<const uint16_t*>(product.weight);
  auto* y = static_cast<float*>(product.y);
  for (int64_t row = 0; row < product.rows; ++row) {
    for (int64_t column = 0; column < product.out; ++column) {
      double sum = 0;
      for (int64_t k = 0; k < product.in; ++k) {
        sum += double{HalfToFloat(x[row * product.in + k])} *
               HalfToFloat(weight[column * product.in + k]);
      }
      float& to = y[row * product.out + column];
      to = static_cast<float>(product.accumulate ? to + sum : sum);
    }
  }
}

}  // namespace binarymos
