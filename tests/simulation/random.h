// Random numbers that are the same on every machine, unlike those of the
// standard library's distributions.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>
#include <random>

#include "engine/api/types.h"

namespace binarymos {

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}

  // In [low, high].
  int Int(int low, int high) {
    return low +
           static_cast<int>(bits_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Int(1, 100) <= percent; }
  template <typename T>
  T Choice(std::initializer_list<T> values) {
    return *(values.begin() + Int(0, static_cast<int>(values.size()) - 1));
  }

  // In (0, 1].
  double Uniform() {
    return static_cast<double>((bits_() >> 11) + 1) * 0x1p-53;
  }
  // The time to the next of events that come independently, `mean` apart.
  Duration Exponential(Duration mean) {
    return Duration(static_cast<Duration::rep>(
        -std::log(Uniform()) * static_cast<double>(mean.count())));
  }
  // Half of the values are below `median`; one in six is above
  // `median` * exp(sigma).
  int LogNormal(double median, double sigma) {
    const double normal = std::sqrt(-2 * std::log(Uniform())) *
                          std::cos(2 * std::numbers::pi * Uniform());
    return static_cast<int>(median * std::exp(sigma * normal));
  }

 private:
  std::mt19937_64 bits_;
};

}  // namespace binarymos
