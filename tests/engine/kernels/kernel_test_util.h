// What the kernel tests share: random data, comparison of bits, the two paths.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "engine/core/float16.h"
#include "engine/core/tensor.h"
#include "engine/kernels/cpu/cpu_kernels.h"
#include "gtest/gtest.h"

namespace binarymos {

// The relative error of rounding to f32.
inline constexpr double kUnit = 0x1p-24;

inline std::vector<float> RandomFloats(int64_t n, uint32_t seed,
                                       float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

inline std::vector<uint16_t> RandomHalves(int64_t n, uint32_t seed,
                                          float scale = 1.0f) {
  std::vector<uint16_t> halves;
  for (const float value : RandomFloats(n, seed, scale)) {
    halves.push_back(FloatToHalf(value));
  }
  return halves;
}

inline ConstTensorView View(const std::vector<float>& values, Shape shape) {
  return {values.data(), DType::kF32, shape};
}
inline ConstTensorView View(const std::vector<uint16_t>& halves, Shape shape) {
  return {halves.data(), DType::kF16, shape};
}

// Equal bits, except that any NaN equals any NaN.
inline bool SameBits(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

inline testing::AssertionResult SameBits(const std::vector<float>& a,
                                         const std::vector<float>& b) {
  if (a.size() != b.size()) {
    return testing::AssertionFailure() << a.size() << " vs. " << b.size();
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (SameBits(a[i], b[i])) continue;
    return testing::AssertionFailure() << "element " << i << " of " << a.size()
                                       << ": " << a[i] << " vs. " << b[i];
  }
  return testing::AssertionSuccess();
}

// Null where they cannot run.
inline const cpu::CpuKernels* KernelsNamed(const std::string& name) {
  if (name == "avx2") return cpu::Avx2Kernels();
  if (name == "avx512") return cpu::Avx512Kernels();
  if (name == "neon") return cpu::NeonKernels();
  return &cpu::PortableKernels();
}

// A test body that runs once for each path: kAllPaths.
class KernelPathTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (KernelsNamed(GetParam()) == nullptr) {
      GTEST_SKIP() << "this CPU or build has no " << GetParam();
    }
  }
  const cpu::CpuKernels& kernels() const { return *KernelsNamed(GetParam()); }
};

// A test that a path agrees with the portable one: kFastPaths.
class PathsAgreeTest : public KernelPathTest {
 protected:
  const cpu::CpuKernels& portable() const { return cpu::PortableKernels(); }
};

inline const auto kAllPaths =
    testing::Values("avx2", "avx512", "neon", "portable");
inline const auto kFastPaths = testing::Values("avx2", "avx512", "neon");

inline std::string PathName(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace binarymos
