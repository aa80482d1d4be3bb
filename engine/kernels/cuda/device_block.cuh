// The block that runs a kernel's body on a device: device_code.h.
#pragma once

#include <cuda_runtime.h>

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/binary_wgmma.h"
#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/half_mma.h"

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
  static __device__ __forceinline__ uint32_t SharedAddress(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }
  __device__ __forceinline__ void Mark(int) const {}

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

  __device__ __forceinline__ PerThread<uint32_t> WarpMax(
      PerThread<uint32_t>& values) const {
    PerThread<uint32_t> result;
    result[0] = __reduce_max_sync(0xffffffffu, values[0]);
    return result;
  }
  __device__ __forceinline__ PerThread<int32_t> WarpSum(
      PerThread<int32_t>& values) const {
    PerThread<int32_t> result;
    result[0] = __reduce_add_sync(0xffffffffu, values[0]);
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

  __device__ __forceinline__ void HalfMma(PerThread<FloatFragment>& c,
                                          PerThread<HalfFragmentA>& a,
                                          PerThread<HalfFragmentB>& b) const {
    float* sum = c[0].v;
    const uint32_t* row = a[0].v;
    const uint32_t* column = b[0].v;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(row[0]), "r"(row[1]), "r"(row[2]), "r"(row[3]), "r"(column[0]),
          "r"(column[1]));
  }

  __device__ __forceinline__ PerThread<Words4> LoadMatrices(
      PerThread<const void*>& rows) const {
    PerThread<Words4> result;
    uint32_t* word = result[0].v;
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
        : "r"(SharedAddress(rows[0]))
        : "memory");
    return result;
  }
  __device__ __forceinline__ PerThread<Words4> LoadTransposed(
      PerThread<const void*>& rows) const {
    PerThread<Words4> result;
    uint32_t* word = result[0].v;
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
        : "r"(SharedAddress(rows[0]))
        : "memory");
    return result;
  }

  __device__ __forceinline__ void CopyAsync(void* to, const void* from) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(SharedAddress(to)), "l"(__cvta_generic_to_global(from))
                 : "memory");
  }
  // Leaves L2 first.
  __device__ __forceinline__ void CopyAsyncOnce(void* to,
                                                const void* from) const {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;"
                 :
                 : "r"(SharedAddress(to)), "l"(__cvta_generic_to_global(from)),
                   "l"(policy)
                 : "memory");
  }
  __device__ __forceinline__ void PrefetchL2(const void* from) const {
    asm volatile("prefetch.global.L2 [%0];"
                 :
                 : "l"(__cvta_generic_to_global(from)));
  }
  __device__ __forceinline__ void CommitCopies() const {
    asm volatile("cp.async.commit_group;" : : : "memory");
  }
  template <int kPending>
  __device__ __forceinline__ void AwaitCopies() const {
    asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
  }

  // Compiled for 9.0 and newer; launched nowhere else.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  static constexpr bool kHasClusters = true;

  // Release and acquire: stores before the one are seen after the other.
  __device__ __forceinline__ void ClusterArrive() const {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
  }
  __device__ __forceinline__ void ClusterWait() const {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
  }
  // A mailbox is a barrier in shared memory that counts bytes.
  __device__ __forceinline__ void OpenMailbox(uint64_t* box, int bytes) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;"
                 :
                 : "r"(SharedAddress(box))
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
    asm volatile(
        "{\n\t.reg .b64 state;\n\t"
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [%0], "
        "%1;\n\t}"
        :
        : "r"(SharedAddress(box)), "r"(bytes)
        : "memory");
  }
  __device__ __forceinline__ void SendToRank(float* to, int rank, float value,
                                             uint64_t* box) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], "
        "%1, [%2];"
        :
        : "r"(RankAddress(to, rank)), "r"(FloatBits(value)),
          "r"(RankAddress(box, rank))
        : "memory");
  }
  __device__ __forceinline__ void AwaitMailbox(uint64_t* box) const {
    asm volatile(
        "{\n\t.reg .pred complete;\n\t"
        "again:\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, "
        "[%0], 0;\n\t"
        "@!complete bra again;\n\t}"
        :
        : "r"(SharedAddress(box))
        : "memory");
  }

  __device__ __forceinline__ void LaunchDependents() const {
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
  }
  __device__ __forceinline__ void WaitForPrevious() const {
    asm volatile("griddepcontrol.wait;" : : : "memory");
  }
#else
  static constexpr bool kHasClusters = false;
  __device__ __forceinline__ void LaunchDependents() const {}
  __device__ __forceinline__ void WaitForPrevious() const {}
#endif

  // Compiled for sm_90a alone, launched nowhere else.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static constexpr bool kHasWgmma = true;

  __device__ __forceinline__ void FenceForTensorCores() const {
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
  }
  // Complete when it returns: as one statement, so that the compiler cannot put
  // a use of the counts, or of the registers of A, in between.
  template <int kColumns>
  __device__ __forceinline__ void BinaryWgmma(
      PerThread<WgmmaCounts<kColumns>>& d, PerThread<SignFragment>& a,
      PerThread<uint64_t>& b) const {
    __syncwarp();
    Wgmma(d[0].v, a[0].v, b[0]);
  }
#else
  static constexpr bool kHasWgmma = false;
#endif

 private:
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ uint32_t RankAddress(const void* p,
                                                         int rank) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(SharedAddress(p)), "r"(rank));
    return address;
  }
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void Wgmma(int32_t (&d)[32],
                                               const uint32_t (&a)[4],
                                               uint64_t b) {
    asm volatile(
        "wgmma.fence.sync.aligned;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k256.s32.b1.b1.and.popc {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 0;\n\t"
        "wgmma.commit_group.sync.aligned;\n\t"
        "wgmma.wait_group.sync.aligned 0;"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]), "=r"(d[4]),
          "=r"(d[5]), "=r"(d[6]), "=r"(d[7]), "=r"(d[8]), "=r"(d[9]),
          "=r"(d[10]), "=r"(d[11]), "=r"(d[12]), "=r"(d[13]), "=r"(d[14]),
          "=r"(d[15]), "=r"(d[16]), "=r"(d[17]), "=r"(d[18]), "=r"(d[19]),
          "=r"(d[20]), "=r"(d[21]), "=r"(d[22]), "=r"(d[23]), "=r"(d[24]),
          "=r"(d[25]), "=r"(d[26]), "=r"(d[27]), "=r"(d[28]), "=r"(d[29]),
          "=r"(d[30]), "=r"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
        : "memory");
  }
  static __device__ __forceinline__ void Wgmma(int32_t (&d)[48],
                                               const uint32_t (&a)[4],
                                               uint64_t b) {
    asm volatile(
        "wgmma.fence.sync.aligned;\n\t"
        "wgmma.mma_async.sync.aligned.m64n96k256.s32.b1.b1.and.popc {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "
        "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
        "%46, %47}, "
        "{%48, %49, %50, %51}, %52, 0;\n\t"
        "wgmma.commit_group.sync.aligned;\n\t"
        "wgmma.wait_group.sync.aligned 0;"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]), "=r"(d[4]),
          "=r"(d[5]), "=r"(d[6]), "=r"(d[7]), "=r"(d[8]), "=r"(d[9]),
          "=r"(d[10]), "=r"(d[11]), "=r"(d[12]), "=r"(d[13]), "=r"(d[14]),
          "=r"(d[15]), "=r"(d[16]), "=r"(d[17]), "=r"(d[18]), "=r"(d[19]),
          "=r"(d[20]), "=r"(d[21]), "=r"(d[22]), "=r"(d[23]), "=r"(d[24]),
          "=r"(d[25]), "=r"(d[26]), "=r"(d[27]), "=r"(d[28]), "=r"(d[29]),
          "=r"(d[30]), "=r"(d[31]), "=r"(d[32]), "=r"(d[33]), "=r"(d[34]),
          "=r"(d[35]), "=r"(d[36]), "=r"(d[37]), "=r"(d[38]), "=r"(d[39]),
          "=r"(d[40]), "=r"(d[41]), "=r"(d[42]), "=r"(d[43]), "=r"(d[44]),
          "=r"(d[45]), "=r"(d[46]), "=r"(d[47])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
        : "memory");
  }
  static __device__ __forceinline__ void Wgmma(int32_t (&d)[64],
                                               const uint32_t (&a)[4],
                                               uint64_t b) {
    asm volatile(
        "wgmma.fence.sync.aligned;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "
        "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
        "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, "
        "%57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 0;\n\t"
        "wgmma.commit_group.sync.aligned;\n\t"
        "wgmma.wait_group.sync.aligned 0;"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]), "=r"(d[4]),
          "=r"(d[5]), "=r"(d[6]), "=r"(d[7]), "=r"(d[8]), "=r"(d[9]),
          "=r"(d[10]), "=r"(d[11]), "=r"(d[12]), "=r"(d[13]), "=r"(d[14]),
          "=r"(d[15]), "=r"(d[16]), "=r"(d[17]), "=r"(d[18]), "=r"(d[19]),
          "=r"(d[20]), "=r"(d[21]), "=r"(d[22]), "=r"(d[23]), "=r"(d[24]),
          "=r"(d[25]), "=r"(d[26]), "=r"(d[27]), "=r"(d[28]), "=r"(d[29]),
          "=r"(d[30]), "=r"(d[31]), "=r"(d[32]), "=r"(d[33]), "=r"(d[34]),
          "=r"(d[35]), "=r"(d[36]), "=r"(d[37]), "=r"(d[38]), "=r"(d[39]),
          "=r"(d[40]), "=r"(d[41]), "=r"(d[42]), "=r"(d[43]), "=r"(d[44]),
          "=r"(d[45]), "=r"(d[46]), "=r"(d[47]), "=r"(d[48]), "=r"(d[49]),
          "=r"(d[50]), "=r"(d[51]), "=r"(d[52]), "=r"(d[53]), "=r"(d[54]),
          "=r"(d[55]), "=r"(d[56]), "=r"(d[57]), "=r"(d[58]), "=r"(d[59]),
          "=r"(d[60]), "=r"(d[61]), "=r"(d[62]), "=r"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
        : "memory");
  }
#endif

  void* shared_;
};

}  // namespace binarymos::cuda
