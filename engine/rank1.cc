#include "engine/rank1.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "engine/core/float16.h"

namespace binarymos {
namespace {

constexpr int kMaxRounds = 300;
constexpr double kTolerance = 1e-7;

std::vector<float> AbsOf(const ConstTensorView& weight) {
  std::vector<float> values(weight.shape.num_elements());
  const auto fill = [&](const auto& elements, auto to_float) {
    std::transform(elements.begin(), elements.end(), values.begin(),
                   [&](auto bits) { return std::abs(to_float(bits)); });
  };
  switch (weight.dtype) {
    case DType::kF16:
      fill(weight.span<uint16_t>(), HalfToFloat);
      break;
    case DType::kBF16:
      fill(weight.span<uint16_t>(), BFloat16ToFloat);
      break;
    default:
      fill(weight.span<float>(), [](float value) { return value; });
  }
  return values;
}

double Dot(std::span<const float> a, std::span<const double> b) {
  constexpr size_t kLanes = 8;
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= a.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
    }
  }
  double sum = 0;
  for (; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  for (const double lane : lanes) sum += lane;
  return sum;
}

double Norm(std::span<const double> v) {
  double sum = 0;
  for (const double value : v) sum += value * value;
  return std::sqrt(sum);
}

// Makes `v` a unit vector, if it is not zero, and returns its length.
double Normalize(std::vector<double>& v) {
  const double norm = Norm(v);
  if (norm > 0) {
    for (double& value : v) value /= norm;
  }
  return norm;
}

double LargestChange(const std::vector<double>& a,
                     const std::vector<double>& b) {
  double change = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    change = std::max(change, std::abs(a[i] - b[i]));
  }
  return change;
}

}  // namespace

Rank1 Rank1OfAbs(const ConstTensorView& weight) {
  const auto out = static_cast<size_t>(weight.shape[0]);
  const auto in = static_cast<size_t>(weight.shape[1]);
  const std::vector<float> a = AbsOf(weight);
  const auto row = [&](size_t o) { return std::span(a).subspan(o * in, in); };

  // Non-negative like the leading vector, hence never orthogonal to it.
  std::vector<double> v(in, 1.0);
  std::vector<double> u(out);
  Normalize(v);
  for (int round = 0; round < kMaxRounds; ++round) {
    std::vector<double> next(in);  // Aᵀ A v
    for (size_t o = 0; o < out; ++o) {
      const auto values = row(o);
      u[o] = Dot(values, v);
      for (size_t i = 0; i < in; ++i) next[i] += u[o] * values[i];
    }
    Normalize(next);
    v.swap(next);
    const double largest = *std::max_element(v.begin(), v.end());
    if (LargestChange(v, next) <= kTolerance * largest) break;
  }
  for (size_t o = 0; o < out; ++o) u[o] = Dot(row(o), v);
  const double root = std::sqrt(Normalize(u));

  Rank1 result;
  for (const double value : u) {
    result.out_scale.push_back(static_cast<float>(value * root));
  }
  for (const double value : v) {
    result.in_scale.push_back(static_cast<float>(value * root));
  }
  return result;
}

}  // namespace binarymos
