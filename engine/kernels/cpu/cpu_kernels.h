// The single-threaded kernels of one instruction set, as a table. Threads and
// batches are the business of the files named after the operations.
#pragma once

#include <cstdint>

namespace binarymos::cpu {

// Positions in a page of the KV cache, in a tile of the online softmax and in a
// split (DESIGN section 6).
inline constexpr int kKvPage = 16;
inline constexpr int kAttentionTile = 64;
inline constexpr int kAttentionSplit = 256;

// Output features that a Float16 linear computes at a time.
inline constexpr int kFloat16TileOuts = 32;

// Some consecutive output features of y = x Wᵀ + bias.
struct Float16LinearTile {
  const float* x = nullptr;  // [rows, in]
  int64_t rows = 0;
  int64_t in = 0;
  const uint16_t* weight = nullptr;  // [outs, in] f16
  const uint16_t* bias = nullptr;    // [outs] f16 or null
  int64_t outs = 0;                  // at most kFloat16TileOuts
  bool accumulate = false;           // y += ... instead of y = ...
  float* y = nullptr;                // [rows, outs], rows y_stride apart
  int64_t y_stride = 0;
};

// Output features of a block of an Int8 linear.
inline constexpr int kInt8BlockOuts = 16;

// One block of y = x Wᵀ with W in 8 bits, see int8_linear.h.
struct Int8LinearTile {
  const int16_t* q = nullptr;     // [rows, num_slices * 256]
  const float* scales = nullptr;  // [rows, num_slices]
  int64_t rows = 0;
  int64_t num_slices = 0;
  const int8_t* weight = nullptr;        // [num_slices, 16, 256], aligned to 16
  const float* weight_scales = nullptr;  // [16]
  int64_t outs = 0;                      // that are stored
  float* y = nullptr;                    // [rows, outs], rows y_stride apart
  int64_t y_stride = 0;
};

// Elements of a KV cache.
enum class KvType : uint8_t { kF16, kF32, kE4m3 };

// A block of queries of one sequence against one split of one KV head. A query
// row is (token, head of the group that shares the KV head), token-major.
struct AttentionSplitTask {
  const float* q = nullptr;  // the group's first head of the first token
  int64_t q_stride = 0;      // floats from one token to the next
  const int32_t* positions = nullptr;  // [num_tokens], ascending by one
  int num_tokens = 0;
  int group = 1;
  int head_dim = 0;
  float scale = 0.0f;
  // [num_blocks, num_kv_heads, kKvPage, head_dim], of type `kv`
  const void* keys = nullptr;
  const void* values = nullptr;
  KvType kv = KvType::kF16;
  int num_kv_heads = 0;
  int kv_head = 0;
  const int32_t* block_table = nullptr;  // of the sequence
  int split = 0;             // positions [split * 256, split * 256 + 256)
  float* scratch = nullptr;  // [2, kAttentionTile, head_dim]
  // [num_tokens * group, StateSize(head_dim)]; rows whose position lies before
  // the split are not written.
  float* states = nullptr;
};

// The state of an online softmax: the largest score, the sum of
// exp(score - largest), and the same sum weighted by the values, [head_dim].
constexpr int64_t AttentionStateSize(int64_t head_dim) { return head_dim + 2; }

struct CpuKernels {
  const char* name;  // "portable", "avx2", "avx512", "neon"

  // out[i] = x[i], exact.
  void (*half_to_float)(const uint16_t* x, float* out, int64_t n);
  // out[i] = x[i], to nearest, ties to even.
  void (*float_to_half)(const float* x, uint16_t* out, int64_t n);
  // out[i] = e^x[i]
  void (*exp)(const float* x, float* out, int64_t n);

  // One row; out may be x.
  void (*rms_norm)(const float* x, const uint16_t* weight, float eps,
                   float* out, int64_t n);
  // out may be gate.
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);
  // Rotates the pairs (d, d + half_dim) of one head; cos, sin: [half_dim].
  void (*rotate)(float* head, const float* cos, const float* sin,
                 int64_t half_dim);

  void (*float16_linear)(const Float16LinearTile& tile);

  // One row to integers of at most qmax: q [slices of 256], zeros after the
  // n-th, and a scale per slice.
  void (*quantize_row)(const float* x, int64_t n, float qmax, int16_t* q,
                       float* scales);
  void (*int8_linear)(const Int8LinearTile& tile);

  void (*attend_split)(const AttentionSplitTask& task);
  // Adds the state of the next split to that of the splits before it.
  void (*merge_states)(const float* next, float* total, int64_t head_dim);
  // out = values of `state` / its sum. [head_dim]
  void (*finish_attention)(const float* state, float* out, int64_t head_dim);
};

// For any CPU of the architecture that the program was built for.
const CpuKernels& PortableKernels();
// Null where they cannot run.
const CpuKernels* Avx2Kernels();
const CpuKernels* Avx512Kernels();
const CpuKernels* NeonKernels();

}  // namespace binarymos::cpu
