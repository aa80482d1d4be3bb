// Runs the body of a CUDA kernel on the CPU: a block of
// engine/kernels/cuda/device_code.h whose threads take turns.
#pragma once

#include <array>
#include <atomic>
#include <barrier>
#include <bit>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/core/check.h"
#include "engine/core/float16.h"
#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/binary_wgmma.h"
#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/half_mma.h"
#include "engine/kernels/cuda/kernel.h"

namespace binarymos {

// In which order the threads of a block take their turns, and blocks follow
// each other. A kernel whose threads depend on each other between barriers, or
// whose blocks do, gives different results.
enum class EmulatedOrder { kAscending, kDescending };

class EmulatedBlock {
 public:
  static constexpr int kMaxThreads = 256;

  // Starts as garbage, as registers do.
  template <typename T>
  class PerThread {
   public:
    static_assert(std::is_trivially_copyable_v<T>);
    PerThread() {
      std::memset(static_cast<void*>(values_.data()), 0xa5, sizeof(values_));
    }
    T& operator[](int thread) { return values_[thread]; }

   private:
    std::array<T, kMaxThreads> values_;
  };

  EmulatedBlock(int64_t x, int64_t y, int num_threads, size_t shared_bytes,
                EmulatedOrder order)
      : x_(x), y_(y), num_threads_(num_threads), order_(order) {
    BINARYMOS_CHECK(num_threads <= kMaxThreads &&
                    num_threads % cuda::kWarp == 0);
    // Garbage too: quiet NaN.
    shared_.resize(shared_bytes / sizeof(Aligned) + 1,
                   Aligned{{~0u, ~0u, ~0u, ~0u}});
  }

  // For blocks of a cluster, which run in threads of their own.
  void JoinCluster(std::barrier<>* barrier,
                   const std::vector<std::unique_ptr<EmulatedBlock>>* cluster) {
    barrier_ = barrier;
    cluster_ = cluster;
  }

  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  void* shared() { return shared_.data(); }
  void Sync() {
    if (copied_ == Copied::kFenced) copied_ = Copied::kSynced;
  }
  // Shared memory begins somewhere.
  uint32_t SharedAddress(const void* p) {
    const ptrdiff_t offset =
        static_cast<const uint8_t*>(p) - static_cast<uint8_t*>(shared());
    BINARYMOS_CHECK(offset >= 0 && offset <= ptrdiff_t{227} << 10);
    return kSharedBegin + static_cast<uint32_t>(offset);
  }

  template <typename F>
  void ForEach(F f) {
    for (int i = 0; i < num_threads_; ++i) {
      f(order_ == EmulatedOrder::kAscending ? i : num_threads_ - 1 - i);
    }
  }

  template <typename T>
  PerThread<T> ShuffleXor(PerThread<T>& values, int mask) {
    PerThread<T> result;
    for (int i = 0; i < num_threads_; ++i) result[i] = values[i ^ mask];
    return result;
  }

  PerThread<uint32_t> Ballot(PerThread<int32_t>& values) {
    PerThread<uint32_t> result;
    for (int warp = 0; warp < num_threads_; warp += cuda::kWarp) {
      uint32_t bits = 0;
      for (int lane = 0; lane < cuda::kWarp; ++lane) {
        bits |= (values[warp + lane] != 0 ? 1u : 0u) << lane;
      }
      for (int lane = 0; lane < cuda::kWarp; ++lane) {
        result[warp + lane] = bits;
      }
    }
    return result;
  }

  PerThread<uint32_t> WarpMax(PerThread<uint32_t>& values) {
    return OverWarps(values,
                     [](uint32_t a, uint32_t b) { return a > b ? a : b; });
  }
  PerThread<int32_t> WarpSum(PerThread<int32_t>& values) {
    return OverWarps(values, [](int32_t a, int32_t b) { return a + b; });
  }

  // Done when it is awaited, not before.
  void CopyAsync(void* to, const void* from) {
    BINARYMOS_CHECK(reinterpret_cast<uintptr_t>(to) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(from) % 16 == 0);
    copies_.emplace_back(to, from);
  }
  void CopyAsyncOnce(void* to, const void* from) { CopyAsync(to, from); }
  void PrefetchL2(const void*) {}
  void CommitCopies() { copy_groups_.push_back(std::exchange(copies_, {})); }
  template <int kPending>
  void AwaitCopies() {
    while (copy_groups_.size() > kPending) {
      for (const auto& [to, from] : copy_groups_.front()) {
        std::memcpy(to, from, 16);
        copied_ = Copied::kAwaited;
      }
      copy_groups_.pop_front();
    }
  }

  void FenceForTensorCores() {
    if (copied_ == Copied::kAwaited) copied_ = Copied::kFenced;
  }

  void ClusterArrive() {
    BINARYMOS_CHECK(!arrival_.has_value());
    arrival_.emplace(barrier_->arrive());
  }
  void ClusterWait() {
    BINARYMOS_CHECK(arrival_.has_value());
    barrier_->wait(*std::move(arrival_));
    arrival_.reset();
  }
  // The box holds the bytes that have not come.
  void OpenMailbox(uint64_t* box, int bytes) {
    std::atomic_ref(*box).store(bytes);
  }
  void SendToRank(float* to, int rank, float value, uint64_t* box) {
    *InRank(to, rank) = value;
    const std::atomic_ref left(*InRank(box, rank));
    const uint64_t before = left.fetch_sub(sizeof(float));
    BINARYMOS_CHECK(before >= sizeof(float) && before < uint64_t{1} << 32);
    left.notify_all();
  }
  void AwaitMailbox(uint64_t* box) {
    const std::atomic_ref left(*box);
    for (uint64_t bytes; (bytes = left.load()) != 0;) left.wait(bytes);
  }

  void Mark(int) {}

  void LaunchDependents() {}
  void WaitForPrevious() {}

  // mma.m16n8k256.row.col.s32.b1.b1.s32.and.popc, with the fragments as the
  // PTX ISA gives them, element by element (element i of a fragment is bit
  // i % 32 of its register i / 32):
  //   A: row = groupID + 8 * (i / 32 % 2), k = t * 32 + i % 32 + 128 * (i / 64)
  //   B: column = groupID, k = t * 32 + i % 32 + 128 * (i / 32)
  //   C: row = groupID + 8 * (i / 2), column = 2 * t + i % 2
  void BinaryMma(PerThread<cuda::CountFragment>& c,
                 PerThread<cuda::SignFragment>& a,
                 PerThread<cuda::PlaneFragment>& b) {
    for (int warp = 0; warp < num_threads_; warp += cuda::kWarp) {
      std::array<Bits256, 16> rows;
      std::array<Bits256, 8> columns;
      for (int lane = 0; lane < cuda::kWarp; ++lane) {
        const int group = lane >> 2;
        const int t = lane & 3;
        for (int reg = 0; reg < 4; ++reg) {
          rows[group + 8 * (reg % 2)][t + 4 * (reg / 2)] =
              a[warp + lane].v[reg];
        }
        for (int reg = 0; reg < 2; ++reg) {
          columns[group][t + 4 * reg] = b[warp + lane].v[reg];
        }
      }
      for (int lane = 0; lane < cuda::kWarp; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const auto& row = rows[(lane >> 2) + 8 * (i / 2)];
          const auto& column = columns[2 * (lane & 3) + i % 2];
          c[warp + lane].v[i] += CountCommon(row, column);
        }
      }
    }
  }

  // wgmma.m64nNk256.s32.b1.b1.and.popc without the old D, A from registers:
  //   A: row = 16 * (warp % 4) + that of mma.m16n8k256, k the same
  //   B: column n, bits 128 h and on: 16 bytes at start + n / 8 * stride +
  //      n % 8 * 16 + h * leading offset (no swizzle, k-major)
  //   D: row = 16 * (warp % 4) + groupID + 8 * (i / 2 % 2),
  //      column = 8 * (i / 4) + 2 * t + i % 2
  template <int kColumns>
  void BinaryWgmma(PerThread<cuda::WgmmaCounts<kColumns>>& d,
                   PerThread<cuda::SignFragment>& a, PerThread<uint64_t>& b) {
    BINARYMOS_CHECK(copied_ == Copied::kSynced);
    BINARYMOS_CHECK(num_threads_ % cuda::kWarpgroup == 0);
    for (int first = 0; first < num_threads_; first += cuda::kWarpgroup) {
      for (int i = 1; i < cuda::kWarpgroup; ++i) {
        BINARYMOS_CHECK(b[first + i] == b[first]);
      }
      std::array<Bits256, kColumns> columns;
      for (int n = 0; n < kColumns; ++n) columns[n] = ColumnOf(b[first], n);
      for (int warp = first; warp < first + cuda::kWarpgroup;
           warp += cuda::kWarp) {
        std::array<Bits256, 16> rows;
        for (int i = 0; i < cuda::kWarp * 4; ++i) {
          const int lane = i / 4;
          const int reg = i % 4;
          rows[(lane >> 2) + 8 * (reg % 2)][(lane & 3) + 4 * (reg / 2)] =
              a[warp + lane].v[reg];
        }
        for (int lane = 0; lane < cuda::kWarp; ++lane) {
          for (int i = 0; i < kColumns / 2; ++i) {
            const auto& row = rows[(lane >> 2) + 8 * (i / 2 % 2)];
            const auto& column = columns[8 * (i / 4) + 2 * (lane & 3) + i % 2];
            d[warp + lane].v[i] = CountCommon(row, column);
          }
        }
      }
    }
  }

  // mma.m16n8k16.row.col.f32.f16.f16.f32, element by element (element i of a
  // fragment is half i % 2 of its register i / 2):
  //   A: row = groupID + 8 * (i / 2 % 2), k = 2 * t + i % 2 + 8 * (i / 4)
  //   B: column = groupID, k = 2 * t + i % 2 + 8 * (i / 2)
  //   C: row = groupID + 8 * (i / 2), column = 2 * t + i % 2
  // Adds in double and rounds once: a tensor core is not as precise.
  void HalfMma(PerThread<cuda::FloatFragment>& c,
               PerThread<cuda::HalfFragmentA>& a,
               PerThread<cuda::HalfFragmentB>& b) {
    const auto half = [](const uint32_t* words, int i) {
      return HalfToFloat(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
    };
    for (int warp = 0; warp < num_threads_; warp += cuda::kWarp) {
      float rows[cuda::kHalfMmaRows][cuda::kHalfMmaDepth];
      float columns[cuda::kHalfMmaColumns][cuda::kHalfMmaDepth];
      for (int lane = 0; lane < cuda::kWarp; ++lane) {
        const int group = lane >> 2;
        const int t = lane & 3;
        for (int i = 0; i < 8; ++i) {
          rows[group + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] =
              half(a[warp + lane].v, i);
        }
        for (int i = 0; i < 4; ++i) {
          columns[group][2 * t + i % 2 + 8 * (i / 2)] =
              half(b[warp + lane].v, i);
        }
      }
      for (int lane = 0; lane < cuda::kWarp; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const float* row = rows[(lane >> 2) + 8 * (i / 2)];
          const float* column = columns[2 * (lane & 3) + i % 2];
          double sum = c[warp + lane].v[i];
          for (int k = 0; k < cuda::kHalfMmaDepth; ++k) {
            sum += static_cast<double>(row[k]) * column[k];
          }
          c[warp + lane].v[i] = static_cast<float>(sum);
        }
      }
    }
  }

  PerThread<cuda::Words4> LoadMatrices(PerThread<const void*>& rows) {
    return GatherMatrices(rows, [](auto& matrix, int group, int t, int i) {
      return matrix(group, 2 * t + i);
    });
  }
  PerThread<cuda::Words4> LoadTransposed(PerThread<const void*>& rows) {
    return GatherMatrices(rows, [](auto& matrix, int group, int t, int i) {
      return matrix(2 * t + i, group);
    });
  }

 private:
  static constexpr uint32_t kSharedBegin = 1024;

  struct alignas(16) Aligned {
    uint32_t words[4];
  };
  // What the last copies to shared memory went through: the tensor core of a
  // warpgroup sees them after all of it.
  enum class Copied { kAwaited, kFenced, kSynced };

  using Bits256 = std::array<uint32_t, 8>;

  static int CountCommon(const Bits256& a, const Bits256& b) {
    const auto words_a = std::bit_cast<std::array<uint64_t, 4>>(a);
    const auto words_b = std::bit_cast<std::array<uint64_t, 4>>(b);
    int count = 0;
    for (int i = 0; i < 4; ++i) count += std::popcount(words_a[i] & words_b[i]);
    return count;
  }

  Bits256 ColumnOf(uint64_t descriptor, int column) {
    constexpr uint64_t kField = 0x3fff;
    const uint64_t start = (descriptor & kField) << 4;
    const uint64_t leading = (descriptor >> 16 & kField) << 4;
    const uint64_t stride = (descriptor >> 32 & kField) << 4;
    BINARYMOS_CHECK(descriptor >> 46 == 0);  // no base offset, no swizzle
    Bits256 words;
    for (int half = 0; half < 2; ++half) {
      const uint64_t address =
          start + column / 8 * stride + column % 8 * 16 + half * leading;
      BINARYMOS_CHECK(address >= kSharedBegin &&
                      address - kSharedBegin + 16 <=
                          shared_.size() * sizeof(Aligned));
      std::memcpy(
          &words[4 * half],
          reinterpret_cast<uint8_t*>(shared_.data()) + address - kSharedBegin,
          16);
    }
    return words;
  }

  // Half i of word m of lane 4 group + t is element(matrix m, group, t, i).
  template <typename F>
  PerThread<cuda::Words4> GatherMatrices(PerThread<const void*>& rows,
                                         F element) {
    PerThread<cuda::Words4> result;
    for (int warp = 0; warp < num_threads_; warp += cuda::kWarp) {
      for (int m = 0; m < 4; ++m) {
        const auto matrix = [&](int row, int column) -> uint32_t {
          const void* address = rows[warp + 8 * m + row];
          BINARYMOS_CHECK(reinterpret_cast<uintptr_t>(address) % 16 == 0);
          return static_cast<const uint16_t*>(address)[column];
        };
        for (int lane = 0; lane < cuda::kWarp; ++lane) {
          result[warp + lane].v[m] = element(matrix, lane >> 2, lane & 3, 0) |
                                     element(matrix, lane >> 2, lane & 3, 1)
                                         << 16;
        }
      }
    }
    return result;
  }

  // The same place in the shared memory of another block of the cluster.
  template <typename T>
  T* InRank(T* p, int rank) {
    const size_t offset =
        reinterpret_cast<uint8_t*>(p) - static_cast<uint8_t*>(shared());
    BINARYMOS_CHECK_LT(offset, shared_.size() * sizeof(Aligned));
    auto* base = static_cast<uint8_t*>((*cluster_)[rank]->shared());
    return reinterpret_cast<T*>(base + offset);
  }

  template <typename T, typename F>
  PerThread<T> OverWarps(PerThread<T>& values, F combine) {
    PerThread<T> result;
    for (int warp = 0; warp < num_threads_; warp += cuda::kWarp) {
      T all = values[warp];
      for (int i = 1; i < cuda::kWarp; ++i)
        all = combine(all, values[warp + i]);
      for (int i = 0; i < cuda::kWarp; ++i) result[warp + i] = all;
    }
    return result;
  }

  int64_t x_;
  int64_t y_;
  int num_threads_;
  EmulatedOrder order_;
  std::vector<Aligned> shared_;
  std::vector<std::pair<void*, const void*>> copies_;
  std::deque<std::vector<std::pair<void*, const void*>>> copy_groups_;
  Copied copied_ = Copied::kSynced;
  std::barrier<>* barrier_ = nullptr;
  const std::vector<std::unique_ptr<EmulatedBlock>>* cluster_ = nullptr;
  std::optional<std::barrier<>::arrival_token> arrival_;
};

// The blocks of a cluster, side by side.
template <typename Kernel>
void RunEmulatedCluster(const Kernel& kernel, int64_t cluster,
                        EmulatedOrder order) {
  constexpr int kBlocks = Kernel::kClusterBlocks;
  std::barrier<> barrier(kBlocks);
  std::vector<std::unique_ptr<EmulatedBlock>> blocks;
  for (int rank = 0; rank < kBlocks; ++rank) {
    blocks.push_back(std::make_unique<EmulatedBlock>(
        cluster * kBlocks + rank, 0, Kernel::kThreads, kernel.shared_bytes(),
        order));
    blocks.back()->JoinCluster(&barrier, &blocks);
  }
  std::vector<std::thread> threads;
  for (const auto& block : blocks) {
    threads.emplace_back([&kernel, &block] { kernel(*block); });
  }
  for (std::thread& thread : threads) thread.join();
}

// All blocks of a launch.
template <typename Kernel>
void RunEmulated(const Kernel& kernel,
                 EmulatedOrder order = EmulatedOrder::kAscending) {
  const cuda::Grid grid = kernel.grid();
  const int64_t count = grid.x * grid.y;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t i = order == EmulatedOrder::kAscending ? n : count - 1 - n;
    if constexpr (cuda::kClusterBlocksOf < Kernel >> 1) {
      if (i % Kernel::kClusterBlocks == 0) {
        RunEmulatedCluster(kernel, i / Kernel::kClusterBlocks, order);
      }
    } else {
      EmulatedBlock block(i % grid.x, i / grid.x, Kernel::kThreads,
                          kernel.shared_bytes(), order);
      kernel(block);
    }
  }
}

}  // namespace binarymos
