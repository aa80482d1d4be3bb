// Sign bits of the checkpoint -> fragment order (binary_mos_layout.h).
//
// sign [out, in / 8] u8  ->  packed [out / 16][slice][lane][4] u32
//
// One thread per word of the result. Runs once per layer at load: reads in *
// out / 8 bytes in pieces of 4, writes as many. 5.6 MB for 4096 x 11008, which
// is a few microseconds on an H200 (predicted) beside the copy over PCIe.
#pragma once

#include <algorithm>

#include "engine/kernels/cuda/binary_mos_layout.h"

namespace binarymos::cuda {

struct PackSigns {
  static constexpr int kThreads = 256;

  BinaryMosShape shape;
  const uint8_t* sign = nullptr;  // [out, in / 8], device
  uint32_t* packed = nullptr;     // [shape.sign_words()], device

  Grid grid() const { return {CeilDiv(shape.sign_words(), kThreads), 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const int64_t i = block.x() * kThreads + thread;
      if (i < shape.sign_words()) packed[i] = Word(i);
    });
  }

 private:
  BINARYMOS_DEVICE uint32_t Word(int64_t i) const {
    const int64_t tile = i / kTileWords / shape.num_slices();
    const int64_t slice = i / kTileWords % shape.num_slices();
    const auto in_tile = static_cast<int>(i % kTileWords);
    const TilePosition at = SignPosition(in_tile / 4, in_tile % 4);
    const int64_t row = tile * kMmaRows + at.row;
    const int64_t row_bytes = shape.in / 8;
    const int64_t first = slice * (kSliceInputs / 8) + at.word * 4;
    uint32_t word = 0;
    if (row >= shape.out) return word;
    for (int b = 0; b < 4; ++b) {
      if (first + b >= row_bytes) break;
      word |= static_cast<uint32_t>(sign[row * row_bytes + first + b])
              << (8 * b);
    }
    return word;
  }
};

}  // namespace binarymos::cuda
