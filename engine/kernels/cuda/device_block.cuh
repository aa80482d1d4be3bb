// The block that runs a kernel's body on a device: device_code.h.
#pragma once

#include <cuda_runtime.h>

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/device_code.h"

namespace binarymos::cuda {

class DeviceBlock {
 public:
  // In registers: the thread has its own, whatever the index.
  template <typename T>
  class PerThread {
   public:
    __device__ __forceinline__ T& operator[](int) { return value_; }

   private:
    T value_;
  };

  explicit __device__ __forceinline__ DeviceBlock(void* shared)
      : shared_(shared) {}

  __device__ __forceinline__ int64_t x() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t y() const { return blockIdx.y; }
  __device__ __forceinline__ void* shared() const { return shared_; }

  template <typename F>
  __device__ __forceinline__ void ForEach(F f) const {
    f(static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ void Sync() const { __syncthreads(); }

  // T is a struct of 32-bit members or one of them.
  template <typename T>
  __device__ __forceinline__ PerThread<T> ShuffleXor(PerThread<T>& values,
                                                     int mask) const {
    static_assert(sizeof(T) % sizeof(uint32_t) == 0);
    union Registers {
      __device__ Registers() {}
      T value;
      uint32_t words[sizeof(T) / sizeof(uint32_t)];
    } registers;
    registers.value = values[0];
    BINARYMOS_UNROLL
    for (size_t i = 0; i < sizeof(T) / sizeof(uint32_t); ++i) {
      registers.words[i] =
          __shfl_xor_sync(0xffffffffu, registers.words[i], mask);
    }
    PerThread<T> result;
    result[0] = registers.value;
    return result;
  }

  __device__ __forceinline__ PerThread<uint32_t> Ballot(
      PerThread<int32_t>& values) const {
    PerThread<uint32_t> result;
    result[0] = __ballot_sync(0xffffffffu, values[0]);
    return result;
  }

  __device__ __forceinline__ void BinaryMma(PerThread<CountFragment>& c,
                                            PerThread<SignFragment>& a,
                                            PerThread<PlaneFragment>& b) const {
    int32_t* count = c[0].v;
    const uint32_t* sign = a[0].v;
    const uint32_t* plane = b[0].v;
    // Volatile: every lane takes part, so it may not move into a branch.
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(count[0]), "+r"(count[1]), "+r"(count[2]), "+r"(count[3])
        : "r"(sign[0]), "r"(sign[1]), "r"(sign[2]), "r"(sign[3]), "r"(plane[0]),
          "r"(plane[1]));
  }

 private:
  void* shared_;
};

}  // namespace binarymos::cuda
