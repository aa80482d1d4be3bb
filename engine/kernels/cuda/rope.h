// Rotary position embedding, and the write of keys and values to the cache.
//
//   (a, b) -> (a cos - b sin, b cos + a sin), pairs (d, d + head_dim / 2)
//
// q [tokens, heads, head_dim] f32 in place, k [tokens, kv_heads, head_dim] f32
// in place, v the same shape; cos, sin [positions, head_dim / 2] f32; keys,
// values [blocks, kv_heads, 16, head_dim] f16, e4m3 or f32
//
// Threads. A block per token, a thread per pair in turn.
//
// Bytes per token (7B, KV in f16): 32 KiB of q, 24 KiB of k and v, 16 KiB
// written to the cache. Predicted for one token on an H200: 2.5 us, a launch
// and two waits; 64 tokens: 3.5 us.
#pragma once

#include "engine/kernels/cuda/canonical_math.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

inline constexpr int kKvPage = 16;

// A rotated pair.
struct RopePair {
  float a, b;
};
BINARYMOS_DEVICE RopePair RotatePair(float a, float b, float c, float s) {
  return {a * c - b * s, b * c + a * s};
}

template <typename T>  // of the cache: float, uint16_t (f16) or uint8_t (e4m3)
struct RopeAndWriteKv {
  static constexpr int kThreads = 256;

  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // even
  int64_t num_tokens = 0;
  const int32_t* positions = nullptr;  // [tokens]
  const int64_t* kv_slots = nullptr;   // [tokens] block * kKvPage + offset
  const float* cos = nullptr;
  const float* sin = nullptr;
  float* q = nullptr;
  float* k = nullptr;
  const float* v = nullptr;
  T* keys = nullptr;
  T* values = nullptr;

  Grid grid() const { return {num_tokens, 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.ForEach([&](int thread) {
      const int half = head_dim / 2;
      const int64_t token = block.x();
      for (int i = thread; i < num_heads * half; i += kThreads) {
        Rotate(token, i % half, q + (token * num_heads + i / half) * head_dim);
      }
      for (int i = thread; i < num_kv_heads * half; i += kThreads) {
        const int head = i / half;
        const int d = i % half;
        const int64_t at = (token * num_kv_heads + head) * head_dim;
        Rotate(token, d, k + at);
        const int64_t slot = kv_slots[token];
        const int64_t cell = ((slot / kKvPage * num_kv_heads + head) * kKvPage +
                              slot % kKvPage) *
                             head_dim;
        for (int offset = 0; offset < head_dim; offset += half) {
          keys[cell + d + offset] = FromFloat<T>(k[at + d + offset]);
          values[cell + d + offset] = FromFloat<T>(v[at + d + offset]);
        }
      }
    });
  }

 private:
  BINARYMOS_DEVICE void Rotate(int64_t token, int d, float* head) const {
    const int half = head_dim / 2;
    const float c = cos[int64_t{positions[token]} * half + d];
    const float s = sin[int64_t{positions[token]} * half + d];
    const RopePair pair = RotatePair(head[d], head[d + half], c, s);
    head[d] = pair.a;
    head[d + half] = pair.b;
  }
};

}  // namespace binarymos::cuda
