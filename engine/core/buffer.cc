#include "engine/core/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/core/mutex.h"

namespace binarymos {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
// What is smaller does not gain from huge pages; what is larger has enough of
// its own.
constexpr size_t kShared = size_t{256} << 10;
constexpr size_t kLarge = size_t{32} << 20;
// Address space, of which only what is written takes memory.
constexpr size_t kRegion = size_t{1} << 30;

size_t RoundUp(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Zeroed pages that are taken as they are written (so that the thread that
// writes first also places them), or null. MAP_NORESERVE as a flag: the kernel
// does not refuse more than the machine has.
void* Map(size_t bytes, int flags = 0) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

// The same, at a multiple of `alignment`, with huge pages asked for. That is
// only advice: the kernel may refuse, and small pages are correct too.
void* MapHuge(size_t bytes, size_t alignment, int flags = 0) {
  const size_t length = RoundUp(bytes, kPage);
  void* const data = Map(length + alignment, flags);
  if (data == nullptr) return nullptr;
  auto* const first = static_cast<uint8_t*>(data);
  auto* const begin = reinterpret_cast<uint8_t*>(
      RoundUp(reinterpret_cast<uintptr_t>(first), alignment));
  const size_t before = begin - first;
  if (before > 0) munmap(first, before);
  if (before < alignment) munmap(begin + length, alignment - before);
  madvise(begin, length, MADV_HUGEPAGE);
  return begin;
}

void Unmap(void* data, size_t bytes) { munmap(data, bytes); }

// A mapping that buffers share, one behind the other. A matrix of some MiB
// hardly covers a huge page by itself: the weights of a layer do so together,
// without a byte of padding. Aligned to its size, so that a buffer finds it.
struct Region {
  size_t used;   // bytes from the beginning, this header included
  size_t alive;  // buffers

  static Region* Of(void* data) {
    return reinterpret_cast<Region*>(reinterpret_cast<uintptr_t>(data) /
                                     kRegion * kRegion);
  }
};

Mutex g_regions_mutex;
Region* g_region ABSL_GUARDED_BY(g_regions_mutex) = nullptr;  // with room

void FreeShared(void* data, size_t bytes) {
  MutexLock lock(g_regions_mutex);
  Region* const region = Region::Of(data);
  if (--region->alive > 0) {
    madvise(data, RoundUp(bytes, kPage), MADV_DONTNEED);
    return;
  }
  if (region == g_region) g_region = nullptr;
  munmap(region, kRegion);
}

// Null if there is no room for another region.
void* AllocateShared(size_t bytes) {
  const size_t length = RoundUp(bytes, kPage);
  MutexLock lock(g_regions_mutex);
  if (g_region == nullptr || g_region->used + length > kRegion) {
    auto* const region =
        static_cast<Region*>(MapHuge(kRegion, kRegion, MAP_NORESERVE));
    if (region == nullptr) return nullptr;
    region->used = kPage;
    g_region = region;
  }
  void* const data = reinterpret_cast<uint8_t*>(g_region) + g_region->used;
  g_region->used += length;
  ++g_region->alive;
  return data;
}

}  // namespace

absl::StatusOr<Buffer> Buffer::AllocateHost(size_t bytes) {
  bytes = std::max<size_t>(bytes, 1);
  if (bytes >= kShared && bytes < kLarge) {
    void* const data = AllocateShared(bytes);
    if (data != nullptr) return Buffer(data, bytes, FreeShared);
  }
  constexpr size_t kMost = PTRDIFF_MAX;
  void* data = nullptr;
  if (bytes < kMost) {
    data = bytes < kLarge ? Map(bytes) : MapHuge(bytes, kHugePage);
  }
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of host memory"));
  }
  return Buffer(data, bytes, Unmap);
}

}  // namespace binarymos
