#include "engine/backend/cuda_blas.h"

#include <dlfcn.h>

#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// Of cublas_api.h.
constexpr int kTransposed = 1, kPlain = 0;   // CUBLAS_OP_T, CUBLAS_OP_N
constexpr int kF32Sums = 68, kDefault = -1;  // CUBLAS_COMPUTE_32F, ..._DEFAULT
constexpr int kSuccess = 0;                  // CUBLAS_STATUS_SUCCESS

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBlas>> CudaBlas::Load(
    const CudaStream& stream) {
  // Never closed: kernels of it may be in recordings.
  void* library = nullptr;
  for (const char* name :
       {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cuBLAS was not found: ", dlerror()));
  }
  std::unique_ptr<CudaBlas> blas(new CudaBlas);
  const auto find = [library](const char* name, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(
        dlsym(library, name));
    return function != nullptr;
  };
  int (*create)(void**) = nullptr;
  int (*set_stream)(void*, cudaStream_t) = nullptr;
  int (*set_workspace)(void*, void*, size_t) = nullptr;
  if (!find("cublasCreate_v2", create) ||
      !find("cublasDestroy_v2", blas->destroy_) ||
      !find("cublasSetStream_v2", set_stream) ||
      !find("cublasSetWorkspace_v2", set_workspace) ||
      !find("cublasGemmEx", blas->gemm_)) {
    return absl::UnavailableError("cuBLAS lacks a function");
  }
  absl::StatusOr<Buffer> workspace = AllocateDeviceBuffer(kWorkspaceBytes);
  if (!workspace.ok()) return workspace.status();
  blas->workspace_ = *std::move(workspace);
  if (create(&blas->handle_) != kSuccess ||
      set_stream(blas->handle_, stream.get()) != kSuccess ||
      set_workspace(blas->handle_, blas->workspace_.data(), kWorkspaceBytes) !=
          kSuccess) {
    return absl::UnavailableError("cuBLAS does not start");
  }
  return blas;
}

CudaBlas::~CudaBlas() {
  if (handle_ != nullptr) destroy_(handle_);
}

absl::Status CudaBlas::Multiply(const HalfProduct& product,
                                cudaDataType y_type) {
  const float one = 1.0f;
  const float keep = product.accumulate ? 1.0f : 0.0f;
  const auto m = static_cast<int>(product.out);
  const auto n = static_cast<int>(product.rows);
  const auto k = static_cast<int>(product.in);
  // It is column-major, hence y and x transposed.
  const int status = gemm_(handle_, kTransposed, kPlain, m, n, k, &one,
                           product.weight, CUDA_R_16F, k, product.x, CUDA_R_16F,
                           k, &keep, product.y, y_type, m, kF32Sums, kDefault);
  if (status == kSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("CUDA: cublasGemmEx: status ", status));
}

}  // namespace binarymos
