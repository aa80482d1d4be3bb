// What lets one source be a CUDA kernel and a function that tests run on a CPU.
//
// A kernel is a struct: its members are the arguments, grid() and
// shared_bytes() its geometry, and operator()(block) its body, a template over
// the block that runs it. nvcc instantiates the body with DeviceBlock
// (launch.cuh), tests with EmulatedBlock (tests/engine/cuda). A block offers
//
//   PerThread<T>          one T per thread; state[thread] is the thread's own
//   ForEach(f)            f(thread) for every thread; no barrier
//   Sync()                barrier: between it, threads must not depend on each
//                         other's memory
//   ShuffleXor(v, mask)   the value of lane ^ mask, within warps of 32
//   Ballot(v)             bit i: v of lane i is not zero
//   WarpMax(v), WarpSum(v)  over the 32 lanes, in each of them
//   BinaryMma(c, a, b)    c += popc(A & B), m16n8k256, see binary_mos_layout.h
//   HalfMma(c, a, b)      c += A B in f16, m16n8k16, see half_mma.h
//   LoadMatrices(p)       four matrices of 8 x 8 halves, see half_mma.h
//   LoadTransposed(p)     the same, each transposed
//   BinaryWgmma(d, a, b)  d = popc(A & B), m64nNk256, see binary_wgmma.h;
//                         kernels with kNeedsWgmma only
//   FenceForTensorCores() before a Sync(): BinaryWgmma() after it reads what
//                         this thread wrote to shared memory
//   SharedAddress(p)      the address that instructions have for it
//   x(), y(), shared()    block index; shared_bytes() of memory, aligned to 16
//   CopyAsync(to, from)   16 bytes from global to shared memory, aligned; the
//                         thread has them after AwaitCopies, others after a
//                         Sync() more. CopyAsyncOnce: nobody reads them again
//   PrefetchL2(from)      brings the line to L2, where there is one
//   CommitCopies()        closes a group of copies
//   AwaitCopies<n>()      waits for all groups but the last n
//
// and to kernels with kClusterBlocks, whose blocks come in clusters of as many
// in a row,
//
//   ClusterArrive(), ClusterWait()  a barrier over the cluster in two halves
//   OpenMailbox(box, n)   one thread, before a barrier that all who send pass:
//                         n bytes will be sent to this 8-byte box, once
//   SendToRank(p, r, v, box)  *p = v in the shared memory of the r-th block,
//                         counted in the box there
//   AwaitMailbox(box)     all has come, and this thread sees it
//   Mark(stage)           where the kernel is, for bench/cuda_stages.cu; does
//                         nothing anywhere else
//
// Launches may overlap (programmatic dependent launch): a block begins while
// the kernel before it still runs. WaitForPrevious() returns when that has
// ended and its writes can be seen; before it, only what no kernel writes may
// be read and nothing written. Every kernel calls it, so that all kernels
// before the one before have ended too: the launcher does, but for kernels with
// kClusterBlocks, which do themselves. LaunchDependents() lets the next begin.
//
// Loops around these calls run the same number of times in every thread of a
// block. Arithmetic is canonical (DESIGN section 6): nvcc gets -fmad=false and
// IEEE division, hence the same bits as engine/kernels/cpu, NaN payloads aside.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define BINARYMOS_DEVICE __device__ __forceinline__
#else
#include <bit>

#include "engine/core/float16.h"
#define BINARYMOS_DEVICE inline
#endif

// Unrolling: full where registers indexed at run time would go to
// memory, by 4 or 16 where loads of a long sum should be in flight together.
#if defined(__CUDACC__)
#define BINARYMOS_UNROLL _Pragma("unroll")
#define BINARYMOS_UNROLL_BY_2 _Pragma("unroll 2")
#define BINARYMOS_UNROLL_BY_4 _Pragma("unroll 4")
#define BINARYMOS_UNROLL_BY_16 _Pragma("unroll 16")
#define BINARYMOS_NO_UNROLL _Pragma("unroll 1")
#else
#define BINARYMOS_UNROLL
#define BINARYMOS_UNROLL_BY_2
#define BINARYMOS_UNROLL_BY_4
#define BINARYMOS_UNROLL_BY_16
#define BINARYMOS_NO_UNROLL
#endif

namespace binarymos::cuda {

inline constexpr int kWarp = 32;

// Blocks of a launch.
struct Grid {
  int64_t x = 1;  // below 2^31
  int64_t y = 1;  // below 2^16
};

// What this pass of the compiler is for, 100 times the compute capability; 0 on
// the host.
#if defined(__CUDA_ARCH__)
inline constexpr int kDeviceArch = __CUDA_ARCH__;
#else
inline constexpr int kDeviceArch = 0;
#endif

// Host and device: no CUDA function is called.
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__CUDACC__)

BINARYMOS_DEVICE float Fma(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
BINARYMOS_DEVICE float Sqrt(float a) { return __fsqrt_rn(a); }
BINARYMOS_DEVICE uint32_t FloatBits(float a) { return __float_as_uint(a); }
BINARYMOS_DEVICE float BitsFloat(uint32_t a) { return __uint_as_float(a); }
BINARYMOS_DEVICE float ToFloat(uint16_t half) {
  return __half2float(__ushort_as_half(half));
}
BINARYMOS_DEVICE uint16_t ToHalf(float a) {
  return __half_as_ushort(__float2half_rn(a));
}
// One LOP3, which the compiler does not make of two constants by itself.
BINARYMOS_DEVICE uint32_t AndXor(uint32_t a, uint32_t mask, uint32_t flipped) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;"
      : "=r"(result)
      : "r"(a), "r"(mask), "r"(flipped));
  return result;
}

#else

inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float Sqrt(float a) { return __builtin_sqrtf(a); }
inline uint32_t FloatBits(float a) { return std::bit_cast<uint32_t>(a); }
inline float BitsFloat(uint32_t a) { return std::bit_cast<float>(a); }
inline float ToFloat(uint16_t half) { return HalfToFloat(half); }
inline uint16_t ToHalf(float a) { return FloatToHalf(a); }
inline uint32_t AndXor(uint32_t a, uint32_t mask, uint32_t flipped) {
  return (a & mask) ^ flipped;
}

#endif

// A cache in e4m3 (engine/core/float8.h), which is uint8_t here. Compute
// capability 8.9 and newer convert in hardware, 8.9 from CUDA 12.1 on; the rest
// gives the same bits, signs and payloads of NaN aside. E4m3Pair: the two codes
// in the lower half of the word, as halves, exact.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ >= 900 ||  \
     (__CUDA_ARCH__ >= 890 && \
      __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201))

BINARYMOS_DEVICE uint8_t ToE4m3(float a) {
  // Infinity times zero is NaN, which the conversion keeps; it would make 448
  // of infinity.
  const float finite_or_nan = Fma(a, 0.0f, a);
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(pair)
      : "f"(0.0f), "f"(finite_or_nan));
  return static_cast<uint8_t>(pair);
}
BINARYMOS_DEVICE uint32_t E4m3Pair(uint32_t codes) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;"
      : "=r"(halves)
      : "h"(static_cast<uint16_t>(codes)));
  return halves;
}

#else

BINARYMOS_DEVICE uint8_t ToE4m3(float a) {
  const uint32_t bits = FloatBits(a);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t code;
  if (magnitude >= 0x7f800000u) {
    code = 0x7f;  // not finite
  } else if (magnitude >= 0x43e00000u) {
    code = 0x7e;  // 448 and more
  } else if (magnitude < 0x3c800000u) {
    // Below 2^-6, units of 2^-9: the last bit of 2^14.
    code = FloatBits(BitsFloat(magnitude) + 0x1p14f) - FloatBits(0x1p14f);
  } else {
    const uint32_t odd = (magnitude >> 20) & 1u;
    code = (magnitude - (120u << 23) + 0x7ffffu + odd) >> 20;
  }
  return static_cast<uint8_t>(sign | code);
}
// Two halves times 256, exact here.
BINARYMOS_DEVICE uint32_t Times256(uint32_t halves) {
#if defined(__CUDACC__)
  __half2 pair;
  __builtin_memcpy(&pair, &halves, sizeof(pair));
  pair = __hmul2(pair, __float2half2_rn(256.0f));
  __builtin_memcpy(&halves, &pair, sizeof(pair));
  return halves;
#else
  const auto one = [](uint32_t half) -> uint32_t {
    return ToHalf(ToFloat(static_cast<uint16_t>(half)) * 256.0f);
  };
  return one(halves & 0xffffu) | one(halves >> 16) << 16;
#endif
}
BINARYMOS_DEVICE uint32_t E4m3Pair(uint32_t codes) {
  // The exponent's bias is 8 less than a half's.
  const uint32_t spread = (codes & 0xffu) | (codes & 0xff00u) << 8;
  const uint32_t magnitude = spread & 0x007f007fu;
  const uint32_t is_nan = (magnitude + 0x00010001u) & 0x00800080u;
  return Times256(magnitude << 7) | is_nan * 0xffu |
         (spread & 0x00800080u) << 8;
}

#endif

// Overloads, so that kernels can be templates over the type of the KV cache.
BINARYMOS_DEVICE float ToFloat(float value) { return value; }
BINARYMOS_DEVICE float ToFloat(uint8_t code) {
  return ToFloat(static_cast<uint16_t>(E4m3Pair(code)));
}
template <typename T>
BINARYMOS_DEVICE T FromFloat(float value);
template <>
BINARYMOS_DEVICE float FromFloat<float>(float value) {
  return value;
}
template <>
BINARYMOS_DEVICE uint16_t FromFloat<uint16_t>(float value) {
  return ToHalf(value);
}
template <>
BINARYMOS_DEVICE uint8_t FromFloat<uint8_t>(float value) {
  return ToE4m3(value);
}

// Elements that move as one load or store. REQUIRES: aligned addresses.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};
using Words2 = Pack<uint32_t, 2>;
using Words4 = Pack<uint32_t, 4>;
using Halves4 = Pack<uint16_t, 4>;
using Floats4 = Pack<float, 4>;

template <typename P, typename T>
BINARYMOS_DEVICE P LoadPack(const T* p) {
  return *reinterpret_cast<const P*>(p);
}

}  // namespace binarymos::cuda
