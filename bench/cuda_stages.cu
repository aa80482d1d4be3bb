// Where the time of cuda::FusedBinaryMos goes: the kernel itself, with a block
// that reads the multiprocessor's clock at every mark. One table on standard
// output, in seconds, on compute capability 9.0.
//
// Layers of LLaMA 7B, one token, launches that overlap in one CUDA graph, each
// with signs of its own so that they come from memory: as bench linear has it.
// A stage is the median over all blocks of all launches but the first. What a
// launch takes is more than the stages after the wait: the rest is from one
// grid to the next.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <vector>

#include "engine/kernels/cuda/binary_mos_fused.h"
#include "engine/kernels/cuda/device_block.cuh"

#define CHECK_CUDA(expression)                                                 \
  do {                                                                         \
    const cudaError_t error = (expression);                                    \
    if (error != cudaSuccess) {                                                \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expression, \
                   cudaGetErrorString(error));                                 \
      std::exit(1);                                                            \
    }                                                                          \
  } while (false)

namespace binarymos::cuda {
namespace {

using Fused = FusedBinaryMos<16>;

constexpr int kExperts = 4;
constexpr int kLaunches = 64;
constexpr int kReplays = 30;
constexpr const char* kStageNames[] = {
    "begun",      "asked for signs", "waited",    "x and scales came",
    "normalized", "routed",          "quantized", "signs came",
    "multiplied", "finished"};
static_assert(std::size(kStageNames) == Fused::kNumStages);

// A block whose first thread notes the clock.
class MarkedBlock : public DeviceBlock {
 public:
  __device__ MarkedBlock(void* shared, int64_t* clocks)
      : DeviceBlock(shared), clocks_(clocks) {}

  __device__ __forceinline__ void Mark(int stage) const {
    if (threadIdx.x == 0) clocks_[stage] = clock64();
  }

 private:
  int64_t* clocks_;  // [kNumStages]
};

__global__ void __launch_bounds__(Fused::kThreads, 2)
    RunMarked(const __grid_constant__ Fused kernel, int64_t* clocks) {
  extern __shared__ uint4 shared[];
  if constexpr (DeviceBlock::kHasClusters) {
    MarkedBlock block(shared, clocks + blockIdx.x * Fused::kNumStages);
    kernel(block);
  }
}

template <typename T>
T* OnDevice(const std::vector<T>& host) {
  void* device = nullptr;
  CHECK_CUDA(cudaMalloc(&device, host.size() * sizeof(T)));
  CHECK_CUDA(cudaMemcpy(device, host.data(), host.size() * sizeof(T),
                        cudaMemcpyHostToDevice));
  return static_cast<T*>(device);
}

template <typename T>
T* Random(int64_t count, T mask, T bits) {
  static std::mt19937 random(1);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>((random() & mask) | bits);
  return OnDevice(values);
}

// Halves from 0.25 to 0.5.
uint16_t* RandomHalves(int64_t count) {
  return Random<uint16_t>(count, 0x03ff, 0x3400);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

void Enqueue(const Fused& kernel, int64_t* clocks, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = Fused::kClusterBlocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(kernel.grid().x);
  config.blockDim = Fused::kThreads;
  config.dynamicSmemBytes = kernel.shared_bytes();
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  CHECK_CUDA(cudaLaunchKernelEx(&config, RunMarked, kernel, clocks));
}

struct Case {
  const char* name;
  int64_t in, out;
  int tasks;
  bool norm;
};

void Time(const Case& each, int clusters, cudaStream_t stream) {
  const BinaryMosShape shape{each.in, each.out, kExperts};
  FusedArgs args;
  args.x = reinterpret_cast<float*>(
      Random<uint32_t>(each.in, 0x807fffff, 0x3f000000));
  if (each.norm) args.norm = RandomHalves(each.in);
  args.eps = 1e-5f;
  args.in = each.in;
  args.qmax = 32767;
  args.num_tasks = each.tasks;
  for (int i = 0; i < each.tasks; ++i) {
    FusedTask& task = args.tasks[i];
    task.out = each.out;
    task.experts = kExperts;
    task.gate = RandomHalves(kExperts * each.in);
    task.in_scale = RandomHalves(kExperts * each.in);
    task.out_scale = RandomHalves(kExperts * each.out);
    task.y = reinterpret_cast<float*>(Random<uint32_t>(each.out, 0, 0));
  }
  PlanClusters(clusters, args);
  // One for each launch and layer.
  std::vector<uint32_t> sign_words(shape.sign_words());
  std::mt19937 random(2);
  for (uint32_t& word : sign_words) word = random();
  std::vector<uint32_t*> signs;
  for (int i = 0; i < kLaunches * each.tasks; ++i) {
    signs.push_back(OnDevice(sign_words));
  }
  const int64_t marks = Fused{args}.grid().x * Fused::kNumStages;
  std::vector<int64_t> clocks(kLaunches * marks);
  int64_t* device_clocks = OnDevice(clocks);
  CHECK_CUDA(cudaFuncSetAttribute(RunMarked,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(Fused::kMaxSharedBytes)));
  CHECK_CUDA(cudaFuncSetAttribute(
      RunMarked, cudaFuncAttributePreferredSharedMemoryCarveout,
      cudaSharedmemCarveoutMaxShared));

  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int launch = 0; launch < kLaunches; ++launch) {
    for (int i = 0; i < each.tasks; ++i) {
      args.tasks[i].signs = signs[launch * each.tasks + i];
    }
    Enqueue(Fused{args}, device_clocks + launch * marks, stream);
  }
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < kReplays; ++i) {
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    times.push_back(1000.0 * milliseconds / kLaunches);
  }
  CHECK_CUDA(cudaMemcpy(clocks.data(), device_clocks,
                        clocks.size() * sizeof(int64_t),
                        cudaMemcpyDeviceToHost));

  std::printf(
      "\n%s: %lld clusters of %d pairs, %.2f us a launch; clocks\n", each.name,
      static_cast<long long>(Fused{args}.grid().x / Fused::kClusterBlocks),
      args.pairs_per_cluster, Median(times));
  double after_wait = 0;
  for (int stage = 1; stage < Fused::kNumStages; ++stage) {
    std::vector<double> spans;
    for (int64_t at = marks; at < static_cast<int64_t>(clocks.size());
         at += Fused::kNumStages) {
      spans.push_back(
          static_cast<double>(clocks[at + stage] - clocks[at + stage - 1]));
    }
    const double median = Median(spans);
    if (stage > Fused::kWaited) after_wait += median;
    std::printf("  %-20s %7.0f\n", kStageNames[stage], median);
  }
  std::printf("  after the wait       %7.0f\n", after_wait);

  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  for (uint32_t* each_signs : signs) CHECK_CUDA(cudaFree(each_signs));
  CHECK_CUDA(cudaFree(device_clocks));
}

}  // namespace
}  // namespace binarymos::cuda

int main() {
  using binarymos::cuda::Time;
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  int kilohertz = 0;
  CHECK_CUDA(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0));
  std::printf("%s, %.2f GHz\n", properties.name, kilohertz / 1e6);
  if (properties.major != 9) {
    std::fprintf(stderr, "cuda_stages measures compute capability 9.0 only\n");
    return 1;
  }
  // Clusters of 8 of a block per multiprocessor: what the backend asks for.
  const int clusters = properties.multiProcessorCount / 8;
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreate(&stream));
  Time({"4096 x 4096 (o)", 4096, 4096, 1, false}, clusters, stream);
  Time({"3 of 4096 x 4096 after a norm (q, k, v)", 4096, 4096, 3, true},
       clusters, stream);
  Time({"2 of 4096 x 11008 after a norm (gate, up)", 4096, 11008, 2, true},
       clusters, stream);
  Time({"11008 x 4096 (down)", 11008, 4096, 1, false}, clusters, stream);
  return 0;
}
