// Where bits lie: packed signs and fragments.
#include "engine/kernels/cuda/binary_mos_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "engine/kernels/cuda/binary_mos_batch.h"
#include "engine/kernels/cuda/binary_mos_multiply.h"
#include "engine/kernels/cuda/binary_mos_pack.h"
#include "engine/kernels/cuda/binary_mos_prepare.h"
#include "tests/engine/cuda/emulated_block.h"

namespace binarymos {
namespace {

std::vector<uint32_t> Pack(const cuda::BinaryMosShape& shape,
                           const std::vector<uint8_t>& sign) {
  std::vector<uint32_t> packed(shape.sign_words(), ~0u);
  RunEmulated(cuda::PackSigns{
      .shape = shape, .sign = sign.data(), .packed = packed.data()});
  return packed;
}

int64_t CountBits(const std::vector<uint32_t>& words) {
  int64_t bits = 0;
  for (const uint32_t word : words) bits += std::popcount(word);
  return bits;
}

TEST(CudaPackSignsTest, EveryWeightIsOneBitAndPaddingIsZero) {
  const cuda::BinaryMosShape shape{.in = 520, .out = 70};
  std::vector<uint8_t> sign(70 * 520 / 8);
  std::set<size_t> places;
  for (int64_t weight = 0; weight < 70 * 520; weight += 13) {
    sign[weight / 8] = static_cast<uint8_t>(1 << weight % 8);
    const std::vector<uint32_t> packed = Pack(shape, sign);
    sign[weight / 8] = 0;
    ASSERT_EQ(CountBits(packed), 1) << weight;
    for (size_t i = 0; i < packed.size(); ++i) {
      if (packed[i] != 0) places.insert(i * 32 + std::countr_zero(packed[i]));
    }
  }
  EXPECT_EQ(places.size(), size_t{70 * 520 / 13});
  std::fill(sign.begin(), sign.end(), uint8_t{0xff});
  EXPECT_EQ(CountBits(Pack(shape, sign)), 70 * 520);
}

TEST(CudaPackSignsTest, RowsArePaddedTo64AndInputsTo256) {
  EXPECT_EQ((cuda::BinaryMosShape{.in = 8, .out = 1}).sign_words(),
            64 * 256 / 32);
  EXPECT_EQ((cuda::BinaryMosShape{.in = 4096, .out = 4096}).sign_words(),
            4096 * 4096 / 32);
  EXPECT_EQ((cuda::BinaryMosShape{.in = 11008, .out = 65}).sign_words(),
            128 * 11008 / 32);
}

// A warp that loads fragments as the kernels do multiplies the matrices that
// the layouts describe, on an instruction that knows nothing of the layouts.
TEST(CudaFragmentsTest, TheInstructionMultipliesSignsByUnitsOfPlanes) {
  std::mt19937 random(3);
  const cuda::BinaryMosShape shape{.in = 256, .out = 16};
  std::vector<uint8_t> sign(16 * 32);
  for (uint8_t& bits : sign) bits = static_cast<uint8_t>(random());
  const std::vector<uint32_t> packed = Pack(shape, sign);
  std::vector<uint32_t> units(8 * cuda::kSliceWords);  // one per column
  for (uint32_t& word : units) word = random();

  EmulatedBlock warp(0, 0, 32, 0, EmulatedOrder::kAscending);
  EmulatedBlock::PerThread<cuda::SignFragment> a;
  EmulatedBlock::PerThread<cuda::PlaneFragment> b;
  EmulatedBlock::PerThread<cuda::CountFragment> c;
  for (int lane = 0; lane < 32; ++lane) {
    a[lane] = cuda::LoadPack<cuda::SignFragment>(packed.data() + lane * 4);
    b[lane] = cuda::LoadPack<cuda::PlaneFragment>(
        units.data() + lane / 4 * cuda::kSliceWords + lane % 4 * 2);
    c[lane] = {{1000, 2000, 3000, 4000}};  // it accumulates
  }
  warp.BinaryMma(c, a, b);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8;
      const int column = lane % 4 * 2 + i % 2;
      int count = 1000 * (i + 1);
      for (int k = 0; k < 256; ++k) {
        const int w = sign[row * 32 + k / 8] >> k % 8 & 1;
        count += w & (units[column * 8 + k / 32] >> k % 32 & 1);
      }
      EXPECT_EQ(c[lane].v[i], count) << "lane " << lane << ", " << i;
    }
  }
}

TEST(CudaPlanesTest, UnitsDoNotOverlapAndFillTheWorkspace) {
  for (const int64_t tokens : {1, 2, 8, 13}) {
    for (const int planes : {8, 12, 16}) {
      if (tokens == 1 && planes == 12) continue;
      const cuda::PlaneLayout layout{tokens, 3, planes};
      const int64_t rounded = tokens == 1 ? 1 : cuda::CeilDiv(tokens, 8) * 8;
      std::set<int64_t> units;
      for (int64_t t = 0; t < rounded; ++t) {
        for (int64_t s = 0; s < 3; ++s) {
          for (int p = 0; p < planes; ++p) {
            const int64_t word = layout.UnitWord(t, s, p);
            EXPECT_EQ(word % cuda::kSliceWords, 0);
            units.insert(word / cuda::kSliceWords);
          }
        }
      }
      const int64_t count = rounded * 3 * planes;
      EXPECT_EQ(static_cast<int64_t>(units.size()), count);
      EXPECT_EQ(*units.begin(), 0);
      EXPECT_EQ(*units.rbegin(), count - 1);
    }
  }
}

TEST(CudaPlanesTest, CoefficientsAreThoseOfTwosComplement) {
  for (const int planes : {8, 12, 16}) {
    for (const int32_t q : {0, 1, -1, 100, -100, 127, -127}) {
      int32_t sum = 0;
      for (int p = 0; p < planes; ++p) {
        sum += (q >> p & 1) * cuda::PlaneCoefficient(p, planes);
      }
      EXPECT_EQ(sum, q);
    }
  }
}

TEST(CudaGroupsTest, EightGroupsCoverTheSlicesInOrder) {
  for (int64_t slices = 1; slices <= 130; ++slices) {
    EXPECT_EQ(cuda::GroupBegin(0, slices), 0);
    EXPECT_EQ(cuda::GroupBegin(8, slices), slices);
    for (int g = 0; g < 8; ++g) {
      const int64_t size =
          cuda::GroupBegin(g + 1, slices) - cuda::GroupBegin(g, slices);
      EXPECT_GE(size, 0);
      EXPECT_LE(size, cuda::CeilDiv(slices, 8));
    }
  }
}

TEST(CudaGeometryTest, BlocksCoverOutputsAndTokens) {
  const cuda::MultiplyArgs one{.shape = {4096, 11008, 4}, .tokens = 1};
  const cuda::MultiplyBinaryMos<16> decode{one};
  EXPECT_EQ(decode.grid().x, 11008 / 32);
  EXPECT_EQ(decode.grid().y, 1);
  const cuda::MultiplyArgs many{.shape = {4096, 4000, 4}, .tokens = 65};
  const cuda::BatchBinaryMos<16, 8> prompt{many};
  EXPECT_EQ(prompt.grid().x, 32);  // 4000 rows, padded to 4032; 31.5 blocks
  EXPECT_EQ(prompt.grid().y, 9);
  // What every device since compute capability 8.0 gives without asking.
  EXPECT_LE(decode.shared_bytes(), size_t{48} << 10);
  EXPECT_LE(prompt.shared_bytes(), size_t{48} << 10);
  EXPECT_LE(cuda::PrepareBinaryMos{}.shared_bytes(), size_t{48} << 10);
}

}  // namespace
}  // namespace binarymos
