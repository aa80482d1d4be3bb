#include "engine/backend/backend_factory.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/backend/cpu_backend.h"
#include "engine/backend/cuda_backend.h"
#include "engine/backend/reference_backend.h"

namespace binarymos {
namespace {

using BackendOr = absl::StatusOr<std::unique_ptr<Backend>>;

constexpr int kMaxThreads = 1024;
constexpr int kDefaultCudaActivationBits = 16;

absl::Status Validate(const BackendOptions& options) {
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads,
                     "; it must be 0 (automatic) to ", kMaxThreads));
  }
  if (!(options.gpu_memory_utilization > 0.0 &&
        options.gpu_memory_utilization <= 1.0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gpu_memory_utilization is ", options.gpu_memory_utilization,
        "; it must be more than 0 and at most 1"));
  }
  switch (options.activation_bits) {
    case 0:
    case 8:
    case 12:
    case 14:
    case 16:
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("activation_bits is ", options.activation_bits,
                       "; it must be 0 (the device's default), 8, 12, 14 or "
                       "16"));
  }
}

BackendOr CreateReferenceBackend(const BackendOptions& options) {
  if (options.activation_bits != 0) {
    return absl::InvalidArgumentError(
        "activation_bits must be 0 with cpu_kernels=reference, which does not "
        "quantize activations");
  }
  if (options.cpu_pin) {
    return absl::InvalidArgumentError(
        "cpu_pin has no meaning with cpu_kernels=reference, which has one "
        "thread");
  }
  return std::make_unique<ReferenceBackend>();
}

BackendOr CreateCpuBackend(const BackendOptions& options) {
  if (options.fast_linear) {
    return absl::InvalidArgumentError(
        "fast_linear has no meaning on a CPU, whose linears are all canonical; "
        "leave it out");
  }
  if (options.cpu_kernels == "reference")
    return CreateReferenceBackend(options);
  return CpuBackend::Create(options);
}

BackendOr CreateCudaBackend(const BackendOptions& options, int ordinal) {
  BackendOr cuda = binarymos::CreateCudaBackend(
      {.ordinal = ordinal,
       .activation_bits = options.activation_bits > 0
                              ? options.activation_bits
                              : kDefaultCudaActivationBits,
       .memory_utilization = options.gpu_memory_utilization,
       .graphs = options.cuda_graphs,
       .clusters = options.cuda_clusters,
       .overlap = options.cuda_overlap,
       .wgmma = options.cuda_wgmma,
       .time_steps = options.cuda_time_steps,
       .fast_linear = options.fast_linear});
  if (!options.fast_linear || !absl::IsUnavailable(cuda.status())) return cuda;
  // What it advises is a CPU, as a rule.
  return absl::UnavailableError(absl::StrCat(
      cuda.status().message(),
      "; on a CPU leave out --fast-linear, which is for CUDA only"));
}

BackendOr CreateBestBackend(const BackendOptions& options) {
  // Asking for CPU kernels is asking for the CPU.
  if (options.cpu_kernels != "auto") return CreateCpuBackend(options);
  BackendOr cuda = CreateCudaBackend(options, 0);
  if (!absl::IsUnavailable(cuda.status())) return cuda;
  if (options.fast_linear) return cuda;
  BackendOr cpu = CreateCpuBackend(options);
  if (cpu.ok()) (*cpu)->set_note(std::string(cuda.status().message()));
  return cpu;
}

}  // namespace

BackendOr CreateBackend(const BackendOptions& options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  if (options.device == "cpu") return CreateCpuBackend(options);
  if (options.device == "auto") return CreateBestBackend(options);
  absl::string_view ordinal_text = options.device;
  int ordinal = 0;
  if (options.device != "cuda" &&
      (!absl::ConsumePrefix(&ordinal_text, "cuda:") ||
       !absl::SimpleAtoi(ordinal_text, &ordinal) || ordinal < 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("device is \"", options.device,
                     "\"; it must be auto, cpu, cuda or cuda:<number>"));
  }
  if (options.cpu_kernels != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("cpu_kernels=", options.cpu_kernels,
                     " has no meaning with device=", options.device));
  }
  if (options.cpu_pin) {
    return absl::InvalidArgumentError(
        absl::StrCat("cpu_pin has no meaning with device=", options.device));
  }
  return CreateCudaBackend(options, ordinal);
}

}  // namespace binarymos
