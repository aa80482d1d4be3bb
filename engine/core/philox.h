// Philox4x32-10 (Salmon et al., SC'11): a counter-based random generator. The
// n-th number is a function of (key, counter), so nothing has to be remembered
// between tokens and nothing depends on who draws first.
#pragma once

#include <array>
#include <cstdint>

namespace binarymos {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

inline PhiloxCounter Philox4x32(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// 64 random bits for the token that sample `sample_index` of a request with
// `seed` puts at `position`.
inline uint64_t PhiloxWord(uint64_t seed, uint32_t sample_index,
                           uint32_t position) {
  const PhiloxCounter bits = Philox4x32(
      {position, sample_index, 0, 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{bits[1]} << 32) | bits[0];
}

// The upper half of the product: for random bits a, one of 0 to b - 1.
inline uint64_t MultiplyHigh(uint64_t a, uint64_t b) {
  const uint64_t low_a = static_cast<uint32_t>(a);
  const uint64_t low_b = static_cast<uint32_t>(b);
  const uint64_t middle = (a >> 32) * low_b + ((low_a * low_b) >> 32);
  const uint64_t other = low_a * (b >> 32) + static_cast<uint32_t>(middle);
  return (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
}

}  // namespace binarymos
