#include "bench/bandwidth.h"

#include <cstring>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "bench/cuda_baseline.h"
#include "bench/samples.h"
#include "engine/backend/host_resources.h"
#include "engine/core/buffer.h"
#include "engine/core/thread_pool.h"

namespace binarymos {
namespace {

constexpr size_t kHostBytes = size_t{320} << 20;
constexpr size_t kDeviceBytes = size_t{1} << 30;

absl::StatusOr<double> OfHost(int num_threads) {
  auto memory = Buffer::AllocateHost(kHostBytes);
  if (!memory.ok()) return memory.status();
  std::memset(memory->data(), 1, kHostBytes);
  ThreadPool pool(num_threads > 0 ? num_threads : UsableCpus());
  const auto* words = static_cast<const uint64_t*>(memory->data());
  constexpr int64_t kWords = kHostBytes / sizeof(uint64_t);
  const auto samples = TakeSamples(2, 9, [&] {
    pool.ParallelFor(kWords, kWords / 64, [&](int64_t begin, int64_t end) {
      uint64_t sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += words[i];
      // The compiler may not leave the loads out.
      asm volatile("" : : "r"(sum) : "memory");
    });
    return absl::OkStatus();
  });
  return static_cast<double>(kHostBytes) / Summarize(*samples).median;
}

absl::StatusOr<double> OfDevice(absl::string_view device) {
  int ordinal = 0;
  if (absl::ConsumePrefix(&device, "cuda:") &&
      !absl::SimpleAtoi(device, &ordinal)) {
    return absl::InvalidArgumentError("not a CUDA device");
  }
  auto baseline = CudaBaseline::Create(ordinal);
  if (!baseline.ok()) return baseline.status();
  const auto samples = (*baseline)->Copy(kDeviceBytes, {4, 5, 20});
  if (!samples.ok()) return samples.status();
  return 2.0 * kDeviceBytes / Summarize(*samples).median;
}

}  // namespace

absl::StatusOr<double> MeasureBandwidth(const BackendOptions& options,
                                        bool on_cuda) {
  return on_cuda ? OfDevice(options.device) : OfHost(options.num_threads);
}

}  // namespace binarymos
