// The attention of the CUDA backend, run on the CPU, against that of the CPU
// backend, bit for bit.
#include "engine/kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/attention.h"
#include "gtest/gtest.h"
#include "tests/engine/cuda/emulated_block.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Heads {
  int num_heads;
  int num_kv_heads;
  int head_dim;
};

// A range of a sequence's positions.
struct Chunk {
  int first;
  int count;
};

// Sequences with one chunk each, whose blocks are interleaved in the cache.
// Memory that no query may see is NaN.
template <typename T>
struct Case {
  Case(const Heads& shape, const std::vector<Chunk>& chunks) : heads(shape) {
    int num_pages = 0;
    for (const Chunk& chunk : chunks) {
      for (int i = 0; i < chunk.count; ++i)
        positions.push_back(chunk.first + i);
      starts.push_back(static_cast<int32_t>(positions.size()));
      num_pages += (chunk.first + chunk.count + 15) / 16;
    }
    const int64_t page = int64_t{heads.num_kv_heads} * 16 * heads.head_dim;
    keys.assign(num_pages * page, T(0x7e00));
    values = keys;
    if constexpr (sizeof(T) == 4) {
      std::fill(keys.begin(), keys.end(), kNan);
      values = keys;
    }
    std::vector<int32_t> order(num_pages);
    for (int i = 0; i < num_pages; ++i) order[i] = i * 7919 % num_pages;
    for (const Chunk& chunk : chunks) {
      for (int p = 0; p < chunk.first + chunk.count; ++p) {
        if (p % 16 == 0) tables.push_back(order[tables.size()]);
        for (int h = 0; h < heads.num_kv_heads; ++h) {
          const int64_t cell =
              ((int64_t{tables.back()} * heads.num_kv_heads + h) * 16 +
               p % 16) *
              heads.head_dim;
          Fill(keys, cell, 2 * p + h);
          Fill(values, cell, 2 * p + h + 100000);
        }
      }
      table_starts.push_back(static_cast<int32_t>(tables.size()));
    }
    q = RandomFloats(static_cast<int64_t>(positions.size()) * heads.num_heads *
                         heads.head_dim,
                     9, 2.0f);
  }

  void Fill(std::vector<T>& cache, int64_t cell, uint32_t seed) const {
    const auto floats = RandomHalves(heads.head_dim, seed);
    for (int d = 0; d < heads.head_dim; ++d) {
      cache[cell + d] =
          sizeof(T) == 2 ? T(floats[d]) : T(HalfToFloat(floats[d]));
    }
  }

  std::vector<float> OnCpu() const {
    ThreadPool pool(1);
    cpu::CpuAttention attention;
    std::vector<float> out(q.size(), kNan);
    attention.Run({cpu::PortableKernels(), pool},
                  {.num_heads = heads.num_heads,
                   .num_kv_heads = heads.num_kv_heads,
                   .head_dim = heads.head_dim,
                   .positions = positions,
                   .query_starts = starts,
                   .block_tables = tables,
                   .block_table_starts = table_starts,
                   .q = q.data(),
                   .keys = keys.data(),
                   .values = values.data(),
                   .kv_f16 = sizeof(T) == 2,
                   .out = out.data()});
    return out;
  }

  // With splits in one block, or apart.
  std::vector<float> OnCuda(bool apart, EmulatedOrder order,
                            int num_tiles = 2) const {
    const int step = cuda::TokensPerBlock(heads.num_heads / heads.num_kv_heads);
    std::vector<cuda::QueryBlock> blocks;
    int max_splits = 0;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      for (int t = starts[s]; t < starts[s + 1]; t += step) {
        const int n = std::min(step, starts[s + 1] - t);
        const int splits = cuda::NumSplits(positions[t + n - 1]);
        blocks.push_back({static_cast<int32_t>(s), t, n, splits});
        max_splits = std::max(max_splits, splits);
      }
    }
    std::vector<float> out(q.size(), kNan);
    cuda::AttentionArgs args{
        .num_heads = heads.num_heads,
        .num_kv_heads = heads.num_kv_heads,
        .head_dim = heads.head_dim,
        .scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim)),
        .num_blocks = static_cast<int64_t>(blocks.size()),
        .blocks = blocks.data(),
        .positions = positions.data(),
        .block_tables = tables.data(),
        .block_table_starts = table_starts.data(),
        .q = q.data(),
        .out = out.data(),
        .num_tiles = num_tiles};
    std::vector<float> states;
    if (apart) {
      states.resize(
          q.size() / heads.head_dim * max_splits * (heads.head_dim + 2), kNan);
      args.num_splits = max_splits;
      args.states = states.data();
    }
    RunEmulated(cuda::Attention<T>{args, const_cast<T*>(keys.data()),
                                   const_cast<T*>(values.data())},
                order);
    if (apart) {
      RunEmulated(
          cuda::MergeAttention{args, static_cast<int64_t>(positions.size())},
          order);
    }
    return out;
  }

  Heads heads;
  std::vector<int32_t> positions, starts = {0}, tables, table_starts = {0};
  std::vector<T> keys, values;
  std::vector<float> q;
};

template <typename T>
void ExpectCpu(const Heads& heads, const std::vector<Chunk>& chunks) {
  const Case<T> c(heads, chunks);
  const std::vector<float> expected = c.OnCpu();
  for (const bool apart : {false, true}) {
    for (const EmulatedOrder order :
         {EmulatedOrder::kAscending, EmulatedOrder::kDescending}) {
      SCOPED_TRACE(testing::Message()
                   << heads.num_heads << "/" << heads.num_kv_heads
                   << " heads of " << heads.head_dim
                   << (apart ? ", apart" : ", whole"));
      EXPECT_TRUE(SameBits(c.OnCuda(apart, order), expected));
      EXPECT_TRUE(SameBits(c.OnCuda(apart, order, 1), expected));
    }
  }
}

TEST(CudaAttentionTest, OneTokenGivesTheBitsOfTheCpu) {
  for (const int position : {0, 1, 15, 16, 63, 64, 65, 255, 256, 257, 700}) {
    SCOPED_TRACE(position);
    ExpectCpu<uint16_t>({2, 2, 16}, {{position, 1}});
  }
}

TEST(CudaAttentionTest, EveryShapeOfHeadsGivesTheBitsOfTheCpu) {
  for (const Heads& heads :
       {Heads{1, 1, 2}, Heads{2, 1, 8}, Heads{4, 2, 24}, Heads{8, 1, 64},
        Heads{1, 1, 80}, Heads{2, 2, 128}, Heads{20, 1, 16}, Heads{1, 1, 36}}) {
    ExpectCpu<uint16_t>(heads, {{290, 1}, {0, 40}});
    ExpectCpu<float>(heads, {{290, 1}, {0, 40}});
  }
}

TEST(CudaAttentionTest, ARaggedBatchGivesTheBitsOfTheCpu) {
  ExpectCpu<uint16_t>(
      {4, 2, 32}, {{0, 1}, {500, 30}, {0, 17}, {254, 5}, {31, 1}, {0, 300}});
}

TEST(CudaAttentionTest, NanInTheCacheStaysWithWhoSeesIt) {
  Case<uint16_t> c({1, 1, 16}, {{0, 80}});
  // The key of position 40.
  c.keys[(int64_t{c.tables[2]} * 16 + 8) * 16] = 0x7e00;
  const auto out = c.OnCuda(false, EmulatedOrder::kAscending);
  EXPECT_TRUE(SameBits(out, c.OnCpu()));
  for (int p = 0; p < 80; ++p) EXPECT_EQ(std::isnan(out[p * 16]), p >= 40) << p;
}

TEST(CudaAttentionTest, LlamaFitsTheSharedMemoryOfEveryDevice) {
  // Compute capability 8.6, 8.9 and 12.0 have 99 KiB.
  for (const Heads& heads : {Heads{32, 32, 128}, Heads{40, 40, 128},
                             Heads{32, 8, 128}, Heads{64, 8, 128}}) {
    const cuda::AttentionArgs args{.num_heads = heads.num_heads,
                                   .num_kv_heads = heads.num_kv_heads,
                                   .head_dim = heads.head_dim};
    EXPECT_LE(
        (cuda::Attention<uint16_t>{args, nullptr, nullptr}.shared_bytes()),
        size_t{99} << 10);
    EXPECT_LE((cuda::Attention<float>{args, nullptr, nullptr}.shared_bytes()),
              size_t{99} << 10);
  }
}

}  // namespace
}  // namespace binarymos
