#include "engine/core/buffer.h"

#include <sys/mman.h>

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

absl::StatusOr<Buffer> Buffer::AllocateHost(size_t bytes) {
  // mmap: zeroed lazily, so the thread that first touches a page places it.
  const size_t length = std::max<size_t>(bytes, 1);
  void* data = mmap(nullptr, length, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of host memory"));
  }
  // Only advice: the kernel may refuse, and small pages are correct too.
  if (length >= 2 * kHugePage) madvise(data, length, MADV_HUGEPAGE);
  return Buffer(data, length, [](void* p, size_t n) { munmap(p, n); });
}

}  // namespace binarymos
