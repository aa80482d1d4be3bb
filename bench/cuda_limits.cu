// What the hardware does, before a kernel is designed around it: clocks of the
// 1-bit tensor core instructions, microseconds per node of a graph, sums over
// the shared memory of a cluster, and how long a multiprocessor waits for cold
// bytes. One table on standard output, in about ten seconds, on compute
// capability 9.0. Stands alone: nvcc -std=c++20 -arch=sm_90a cuda_limits.cu
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK_CUDA(expression)                                                 \
  do {                                                                         \
    const cudaError_t error = (expression);                                    \
    if (error != cudaSuccess) {                                                \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expression, \
                   cudaGetErrorString(error));                                 \
      std::exit(1);                                                            \
    }                                                                          \
  } while (false)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define BINARYMOS_SM90A 1
#endif

namespace {

namespace cg = cooperative_groups;

constexpr int kWarp = 32;
constexpr int kClusterBlocks = 8;

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

// --- 1-bit tensor core instructions -----------------------------------------

// Clocks of `count` instructions per warp, four independent sums each.
__global__ void TimeMma(int count, int64_t* clocks, int32_t* sink) {
  int32_t c[4][4] = {};
  const uint32_t a = 0x9e3779b9u * (threadIdx.x + 1);
  const uint32_t b = 0x85ebca6bu * (threadIdx.x + 7);
  __syncthreads();
  const int64_t begin = clock64();
  for (int i = 0; i < count; i += 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      asm volatile(
          "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
          "{%0, %1, %2, %3}, {%4, %5, %4, %5}, {%6, %7}, {%0, %1, %2, %3};"
          : "+r"(c[k][0]), "+r"(c[k][1]), "+r"(c[k][2]), "+r"(c[k][3])
          : "r"(a), "r"(~a), "r"(b), "r"(b ^ a));
    }
  }
  __syncthreads();
  const int64_t end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  int32_t sum = 0;
  for (const auto& one : c) sum += one[0] + one[1] + one[2] + one[3];
  if (sum == 0x7fffffff) *sink = sum;
}

template <int kColumns>
struct WarpgroupMma;

#ifdef BINARYMOS_SM90A
template <>
struct WarpgroupMma<8> {
  static __device__ void Run(int32_t (&d)[4], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.and.popc "
        "{"
        "%0, %1, %2, %3 "
        "}, %4, %5, 1;"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "l"(a), "l"(b));
  }
};
template <>
struct WarpgroupMma<16> {
  static __device__ void Run(int32_t (&d)[8], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k256.s32.b1.b1.and.popc "
        "{"
        "%0, %1, %2, %3, %4, %5, %6, %7 "
        "}, %8, %9, 1;"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]),
          "+r"(d[5]), "+r"(d[6]), "+r"(d[7])
        : "l"(a), "l"(b));
  }
};
template <>
struct WarpgroupMma<64> {
  static __device__ void Run(int32_t (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k256.s32.b1.b1.and.popc "
        "{"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
        "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31 "
        "}, %32, %33, 1;"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]),
          "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]),
          "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]),
          "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),
          "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
          "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
          "+r"(d[30]), "+r"(d[31])
        : "l"(a), "l"(b));
  }
};
template <>
struct WarpgroupMma<128> {
  static __device__ void Run(int32_t (&d)[64], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc "
        "{"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
        "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
        "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
        "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63 "
        "}, %64, %65, 1;"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]),
          "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]),
          "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]),
          "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),
          "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
          "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
          "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]),
          "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]),
          "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]),
          "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]), "+r"(d[49]),
          "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]),
          "+r"(d[55]), "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]),
          "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
        : "l"(a), "l"(b));
  }
};
// A matrix in shared memory without swizzle, rows of 256 bits: core matrices of
// 8 rows of 16 bytes, the two of a row 128 bytes apart, the next 8 rows 256.
__device__ uint64_t Descriptor(const void* matrix) {
  const auto address =
      static_cast<uint64_t>(__cvta_generic_to_shared(matrix)) & 0x3ffff;
  return address >> 4 | uint64_t{128 >> 4} << 16 | uint64_t{256 >> 4} << 32;
}
#endif

// As TimeMma, of the instruction of a warpgroup, both operands in shared
// memory.
template <int kColumns>
__global__ void TimeWarpgroupMma(int count, int64_t* clocks, int32_t* sink) {
#ifdef BINARYMOS_SM90A
  __shared__ alignas(128) uint32_t a[64 * 8];
  __shared__ alignas(128) uint32_t b[kColumns * 8];
  for (int i = threadIdx.x; i < 64 * 8; i += blockDim.x) a[i] = 0x9e3779b9u * i;
  for (int i = threadIdx.x; i < kColumns * 8; i += blockDim.x) {
    b[i] = 0x85ebca6bu * i;
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  int32_t d[kColumns / 2] = {};
  const uint64_t descriptor_a = Descriptor(a);
  const uint64_t descriptor_b = Descriptor(b);
  const int64_t begin = clock64();
#pragma unroll 1
  for (int i = 0; i < count; i += 32) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 32; ++k) {
      WarpgroupMma<kColumns>::Run(d, descriptor_a, descriptor_b);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  __syncthreads();
  const int64_t end = clock64();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - begin;
  int32_t sum = 0;
  for (const int32_t one : d) sum += one;
  if (sum == 0x7fffffff) *sink = sum;
#endif
}

void TimeTensorCores(int64_t* clocks, int32_t* sink) {
  const auto clocks_of = [&](auto kernel, int threads) {
    constexpr int kCount = 4096;
    kernel<<<1, threads>>>(kCount, clocks, sink);  // warms up
    kernel<<<1, threads>>>(kCount, clocks, sink);
    int64_t result = 0;
    CHECK_CUDA(
        cudaMemcpy(&result, clocks, sizeof(result), cudaMemcpyDeviceToHost));
    return static_cast<double>(result) / kCount;
  };
  std::printf("\n1-bit MMA, clocks per instruction of one SM\n");
  for (const int warps : {4, 8, 16}) {
    const double clock = clocks_of(TimeMma, warps * kWarp) / warps;
    std::printf("  m16n8k256, %2d warps      %6.2f  (%.4f per clock)\n", warps,
                clock, 1 / clock);
  }
  const auto print = [&](int columns, auto kernel) {
    for (const int groups : {1, 2}) {
      std::printf("  m64n%dk256, %d warpgroup%s %6.2f\n", columns, groups,
                  groups == 1 ? " " : "s",
                  clocks_of(kernel, groups * 4 * kWarp) / groups);
    }
  };
  print(8, TimeWarpgroupMma<8>);
  print(16, TimeWarpgroupMma<16>);
  print(64, TimeWarpgroupMma<64>);
  print(128, TimeWarpgroupMma<128>);
}

// --- Nodes of a graph -------------------------------------------------------

template <bool kEarly>
__global__ void Empty() {
#ifdef BINARYMOS_SM90A
  if (kEarly) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
  }
#endif
}

// As Empty, with a barrier of the cluster at its end.
template <bool kEarly>
__global__ void EmptyCluster() {
#ifdef BINARYMOS_SM90A
  if (kEarly) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
  }
  cg::this_cluster().sync();
#endif
}

struct Launch {
  int blocks = 128;
  int threads = 256;
  int cluster = 1;
  bool early = false;  // programmatic dependent launch
};

template <typename... Args>
void Enqueue(const Launch& launch, cudaStream_t stream, void (*kernel)(Args...),
             Args... args) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.blocks;
  config.blockDim = launch.threads;
  config.stream = stream;
  config.attrs = attributes;
  if (launch.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = launch.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (launch.early) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, args...));
}

// Median microseconds of one node, of a graph of `nodes` that `enqueue` fills.
template <typename F>
double TimeNodes(cudaStream_t stream, int nodes, F enqueue) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < nodes; ++i) enqueue(i);
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  for (int i = 0; i < 5; ++i) CHECK_CUDA(cudaGraphLaunch(exec, stream));
  std::vector<double> times;
  for (int i = 0; i < 51; ++i) {
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    times.push_back(1000.0 * milliseconds / nodes);
  }
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return Median(times);
}

void TimeGraphNodes(cudaStream_t stream) {
  std::printf("\nEmpty kernels of 128 blocks, us per node of a graph\n");
  constexpr int kNodes = 200;
  for (const bool early : {false, true}) {
    for (const int cluster : {1, 4, 8}) {
      const Launch launch{.cluster = cluster, .early = early};
      const auto kernel =
          cluster == 1 ? (early ? Empty<true> : Empty<false>)
                       : (early ? EmptyCluster<true> : EmptyCluster<false>);
      std::printf("  cluster of %d%s %6.2f\n", cluster,
                  early ? ", dependent launch" : "                  ",
                  TimeNodes(stream, kNodes,
                            [&](int) { Enqueue(launch, stream, kernel); }));
    }
  }
}

// --- Sums over a cluster ----------------------------------------------------

// Clocks of an all-reduce of 8 floats, then of a reduce-scatter of 256, over
// the shared memory of a cluster; the least of ten rounds.
__global__ void TimeClusterSums(int64_t* clocks, int32_t* sink) {
#ifdef BINARYMOS_SM90A
  cg::cluster_group cluster = cg::this_cluster();
  __shared__ float few[8];
  __shared__ float many[256];
  __shared__ float total[8];
  const auto rank = static_cast<int>(cluster.block_rank());
  const auto thread = static_cast<int>(threadIdx.x);
  int64_t best[2] = {INT64_MAX, INT64_MAX};
  float keep = 0;
  for (int round = 0; round < 10; ++round) {
    if (thread < 8) few[thread] = rank + thread;
    many[thread] = rank * thread;
    cluster.sync();
    int64_t begin = clock64();
    cluster.sync();  // where the partial sums are published
    if (thread < 8) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kClusterBlocks; ++i) {
        sum += cluster.map_shared_rank(few, i)[thread];
      }
      total[thread] = sum;
    }
    __syncthreads();
    keep += total[thread % 8];
    best[0] = min(best[0], static_cast<int64_t>(clock64()) - begin);
    cluster.sync();
    begin = clock64();
    cluster.sync();
    if (thread < 32) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kClusterBlocks; ++i) {
        sum += cluster.map_shared_rank(many, i)[thread * kClusterBlocks + rank];
      }
      keep += sum;
    }
    __syncthreads();
    best[1] = min(best[1], static_cast<int64_t>(clock64()) - begin);
    cluster.sync();
  }
  if (thread == 0) {
    clocks[2 * blockIdx.x] = best[0];
    clocks[2 * blockIdx.x + 1] = best[1];
  }
  if (keep == 1.5f) *sink = 1;
#endif
}

void TimeClusters(cudaStream_t stream, int64_t* clocks, int32_t* sink) {
  const Launch launch{.cluster = kClusterBlocks};
  Enqueue(launch, stream, TimeClusterSums, clocks, sink);
  std::vector<int64_t> all(2 * launch.blocks);
  CHECK_CUDA(cudaMemcpyAsync(all.data(), clocks, all.size() * sizeof(int64_t),
                             cudaMemcpyDeviceToHost, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  std::vector<double> sums[2];
  for (size_t i = 0; i < all.size(); ++i) {
    sums[i % 2].push_back(static_cast<double>(all[i]));
  }
  std::printf("\nSums over a cluster of 8, clocks, median of 128 blocks\n");
  std::printf("  all-reduce of 8 floats       %6.0f\n", Median(sums[0]));
  std::printf("  reduce-scatter of 256 floats %6.0f\n", Median(sums[1]));
}

template <typename Kernel>
void PrintMaxClusters(Kernel kernel) {
  std::printf("\nClusters of 256 threads per block that run at once\n");
  for (const int blocks : {4, 8}) {
    for (const int kib : {16, 100, 200}) {
      CHECK_CUDA(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kib << 10));
      cudaLaunchAttribute attribute = {};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = blocks;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
      cudaLaunchConfig_t config = {};
      config.gridDim = 128;
      config.blockDim = 256;
      config.dynamicSmemBytes = static_cast<size_t>(kib) << 10;
      config.attrs = &attribute;
      config.numAttrs = 1;
      int clusters = 0;
      CHECK_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
      std::printf("  of %d blocks, %3d KiB each %4d\n", blocks, kib, clusters);
    }
  }
}

// --- Cold bytes -------------------------------------------------------------

// 128 blocks read `bytes` each: 16-byte loads into registers, all in flight at
// once as far as registers go.
template <int kLoads>
__global__ void __launch_bounds__(256, 1)
    ReadByLoads(const uint4* source, int32_t* sink) {
  uint4 values[kLoads];
  const uint4* mine = source + int64_t{blockIdx.x} * kLoads * blockDim.x;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const uint4* from = mine + i * blockDim.x + threadIdx.x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(values[i].x), "=r"(values[i].y), "=r"(values[i].z),
                   "=r"(values[i].w)
                 : "l"(from));
  }
  uint32_t sum = 0;
#pragma unroll
  for (const uint4& one : values) sum |= one.x & one.y & one.z & one.w;
  if (sum == 0x12345678u) *sink = 1;
}

// The same by one bulk copy per 8 KiB into shared memory.
__global__ void ReadByBulkCopies(const uint4* source, int bytes,
                                 int32_t* sink) {
#ifdef BINARYMOS_SM90A
  extern __shared__ uint4 buffer[];
  __shared__ alignas(8) uint64_t barrier;
  const auto address =
      static_cast<uint32_t>(__cvta_generic_to_shared(&barrier));
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address),
        "r"(bytes));
    const char* from =
        reinterpret_cast<const char*>(source) + int64_t{blockIdx.x} * bytes;
    for (int i = 0; i < bytes; i += 8192) {
      const int size = min(8192, bytes - i);
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
          "[%0], [%1], %2, [%3];" ::"r"(
              static_cast<uint32_t>(__cvta_generic_to_shared(buffer)) + i),
          "l"(from + i), "r"(size), "r"(address)
          : "memory");
    }
  }
  __syncthreads();
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(address)
        : "memory");
  }
  if (buffer[threadIdx.x].x == 0x12345678u) *sink = 1;
#endif
}

void TimeColdReads(cudaStream_t stream, int32_t* sink) {
  constexpr size_t kBytes = size_t{1} << 30;  // past any L2
  constexpr int kNodes = 64;
  uint4* source;
  CHECK_CUDA(cudaMalloc(&source, kBytes));
  CHECK_CUDA(cudaMemset(source, 0x5a, kBytes));
  std::printf(
      "\nCold reads by 128 blocks, us per node of a graph (and TB/s)\n");
  const auto print = [&](const char* how, int bytes_per_block, bool early,
                         auto enqueue) {
    const double time = TimeNodes(stream, kNodes, [&](int node) {
      const size_t bytes = size_t{128} * bytes_per_block;
      enqueue(source + node * (kBytes / kNodes) / sizeof(uint4), bytes);
    });
    std::printf("  %-10s %3d KiB%s %6.2f  (%.2f)\n", how, bytes_per_block >> 10,
                early ? ", dependent launch" : "                  ", time,
                128.0 * bytes_per_block / time / 1e6);
  };
  const auto loads = [&](auto kernel, int per_thread) {
    print("loads", per_thread * 256 * 16, false, [&](const uint4* at, size_t) {
      Enqueue(Launch{}, stream, kernel, at, sink);
    });
  };
  loads(ReadByLoads<4>, 4);
  loads(ReadByLoads<11>, 11);
  loads(ReadByLoads<17>, 17);
  loads(ReadByLoads<23>, 23);
  for (const int kib : {16, 43, 66, 90}) {
    const int bytes = kib << 10;
    CHECK_CUDA(cudaFuncSetAttribute(
        ReadByBulkCopies, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    print("bulk", bytes, false, [&](const uint4* at, size_t) {
      ReadByBulkCopies<<<128, 256, bytes, stream>>>(at, bytes, sink);
    });
  }
  CHECK_CUDA(cudaFree(source));
}

// A large copy: bytes read and written.
void TimeCopy(cudaStream_t stream) {
  constexpr size_t kBytes = size_t{2} << 30;
  void* buffers[2];
  for (void*& buffer : buffers) {
    CHECK_CUDA(cudaMalloc(&buffer, kBytes));
    CHECK_CUDA(cudaMemset(buffer, 0x5a, kBytes));
  }
  const double time = TimeNodes(stream, 4, [&](int) {
    CHECK_CUDA(cudaMemcpyAsync(buffers[1], buffers[0], kBytes,
                               cudaMemcpyDeviceToDevice, stream));
  });
  std::printf("\nCopy of 2 GiB: %.2f TB/s, read and written\n",
              2.0 * kBytes / time / 1e6);
  for (void* buffer : buffers) CHECK_CUDA(cudaFree(buffer));
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  int kilohertz = 0;
  CHECK_CUDA(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0));
  std::printf("%s, compute capability %d.%d, %d SMs, %.2f GHz, L2 %d MiB\n",
              properties.name, properties.major, properties.minor,
              properties.multiProcessorCount, kilohertz / 1e6,
              properties.l2CacheSize >> 20);
  if (properties.major != 9) {
    std::fprintf(stderr, "cuda_limits measures compute capability 9.0 only\n");
    return 1;
  }
  cudaStream_t stream;
  int64_t* clocks;
  int32_t* sink;
  CHECK_CUDA(cudaStreamCreate(&stream));
  CHECK_CUDA(cudaMalloc(&clocks, 4096));
  CHECK_CUDA(cudaMalloc(&sink, sizeof(*sink)));
  TimeCopy(stream);
  TimeTensorCores(clocks, sink);
  TimeGraphNodes(stream);
  TimeClusters(stream, clocks, sink);
  PrintMaxClusters(EmptyCluster<false>);
  TimeColdReads(stream, sink);
  CHECK_CUDA(cudaDeviceSynchronize());
  return 0;
}
