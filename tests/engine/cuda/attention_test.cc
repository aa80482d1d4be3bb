// The attention of the CUDA backend, run on the CPU: the one on tensor cores
// against the reference, the one in f32 against that of the CPU backend, bit
// for bit; and each against itself, whatever else is in the block.
#include "engine/kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "engine/core/thread_pool.h"
#include "engine/kernels/cpu/attention.h"
#include "engine/kernels/cuda/float_attention.h"
#include "engine/kernels/cuda/merge_attention.h"
#include "engine/kernels/cuda/rope.h"
#include "engine/kernels/reference/attention.h"
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

// How a launch is cut.
struct Launch {
  bool apart = false;  // the splits
  EmulatedOrder order = EmulatedOrder::kAscending;
  int num_tiles = 2;
};

// Sequences with one chunk each, whose blocks are interleaved in the cache.
// Memory that no query may see is NaN.
template <typename Cell>
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
    keys.assign(num_pages * page, cuda::FromFloat<Cell>(kNan));
    values = keys;
    std::vector<int32_t> order(num_pages);
    for (int i = 0; i < num_pages; ++i) order[i] = i * 7919 % num_pages;
    for (const Chunk& chunk : chunks) {
      for (int p = 0; p < chunk.first + chunk.count; ++p) {
        if (p % 16 == 0) tables.push_back(order[tables.size()]);
        for (int h = 0; h < heads.num_kv_heads; ++h) {
          const int64_t cell = CellOf(tables.back(), p, h);
          Fill(keys, cell, 2 * p + h);
          Fill(values, cell, 2 * p + h + 100000);
        }
      }
      table_starts.push_back(static_cast<int32_t>(tables.size()));
    }
    q = RandomFloats(static_cast<int64_t>(positions.size()) * Width(), 9, 2.0f);
  }

  int Width() const { return heads.num_heads * heads.head_dim; }
  int64_t CellOf(int64_t page, int position, int head) const {
    return ((page * heads.num_kv_heads + head) * 16 + position % 16) *
           heads.head_dim;
  }
  void Fill(std::vector<Cell>& cache, int64_t cell, uint32_t seed) const {
    const auto floats = RandomFloats(heads.head_dim, seed);
    for (int d = 0; d < heads.head_dim; ++d) {
      cache[cell + d] = cuda::FromFloat<Cell>(floats[d]);
    }
  }

  std::vector<float> OnCpu() const {
    ThreadPool pool(1);
    cpu::CpuAttention attention;
    std::vector<float> out(q.size(), kNan);
    attention.Run(
        {cpu::PortableKernels(), pool},
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
         .kv = sizeof(Cell) == 2 ? cpu::KvType::kF16 : cpu::KvType::kF32,
         .out = out.data()});
    return out;
  }

  // Blocks as the backend makes them.
  std::vector<cuda::QueryBlock> Blocks(int step) const {
    std::vector<cuda::QueryBlock> blocks;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      for (int end = starts[s + 1]; end > starts[s];) {
        const int last = positions[end - 1];
        const int n =
            std::min({step, last % cuda::kAttentionTile + 1, end - starts[s]});
        blocks.push_back(
            {static_cast<int32_t>(s), end - n, n, cuda::NumSplits(last)});
        end -= n;
      }
    }
    return blocks;
  }

  template <typename Kernel>
  std::vector<float> Run(const Launch& launch,
                         const cuda::AttentionArgs& extra = {}) {
    const auto blocks =
        Blocks(Kernel::TokensPerBlock(heads.num_heads / heads.num_kv_heads));
    std::vector<float> out(q.size(), kNan);
    cuda::AttentionArgs args = extra;
    args.num_heads = heads.num_heads;
    args.num_kv_heads = heads.num_kv_heads;
    args.head_dim = heads.head_dim;
    args.scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim));
    args.num_blocks = static_cast<int64_t>(blocks.size());
    args.blocks = blocks.data();
    int max_splits = 0;
    for (const cuda::QueryBlock& block : blocks) {
      max_splits = std::max(max_splits, int{block.num_splits});
      args.tokens_per_block =
          std::max(args.tokens_per_block, int{block.num_tokens});
    }
    args.positions = positions.data();
    args.block_tables = tables.data();
    args.block_table_starts = table_starts.data();
    args.q = q.data();
    args.out = out.data();
    args.num_tiles = launch.num_tiles;
    std::vector<float> states;
    if (launch.apart) {
      states.resize(
          q.size() / heads.head_dim * max_splits * (heads.head_dim + 2), kNan);
      args.num_splits = max_splits;
      args.states = states.data();
    }
    RunEmulated(Kernel{args, keys.data(), values.data()}, launch.order);
    if (launch.apart) {
      RunEmulated(
          cuda::MergeAttention{args, static_cast<int64_t>(positions.size())},
          launch.order);
    }
    return out;
  }
  std::vector<float> OnCuda(const Launch& launch = {},
                            const cuda::AttentionArgs& extra = {}) {
    if constexpr (std::is_same_v<Cell, float>) {
      return Run<cuda::FloatAttention>(launch, extra);
    } else if (heads.head_dim <= 128) {
      return Run<cuda::Attention<Cell, 128>>(launch, extra);
    } else {
      return Run<cuda::Attention<Cell, 512>>(launch, extra);
    }
  }

  // The token alone, as a sequence of its own.
  Case Alone(int sequence, int token) const {
    Case one = *this;
    one.positions = {positions[token]};
    one.starts = {0, 1};
    one.tables.assign(tables.begin() + table_starts[sequence],
                      tables.begin() + table_starts[sequence + 1]);
    one.table_starts = {0, static_cast<int32_t>(one.tables.size())};
    one.q.assign(q.begin() + token * Width(),
                 q.begin() + (token + 1) * Width());
    return one;
  }

  Heads heads;
  std::vector<int32_t> positions, starts = {0}, tables, table_starts = {0};
  std::vector<Cell> keys, values;
  std::vector<float> q;
};

// What attention on tensor cores may be away from the reference, for one query
// head. With u = 2^-24, d = head_dim / 16 rounded up, A the largest scale * Σ
// |q k| of a position:
//   a score: q in halves 4 u, d + 3 roundings: (d + 7) u A;
//   a weight, relative: its score's error, s - m rounded 2 u A, exp 4 u, in
//   halves 4 u;
//   values: in the result, an error of a weight weighs at most twice its
//   relative size, by the largest |v|; and per tile 4 MMAs and a correction,
//   per split two roundings, hi and lo and the division 2.
// An emulated MMA rounds once.
double Bound(int head_dim, int position, double a, double largest_value) {
  const int depth = (head_dim + 15) / 16;
  const double weight = (depth + 7 + 2) * a + 8;
  const double tiles = position / cuda::kAttentionTile + 1;
  const double splits = cuda::NumSplits(position);
  return kUnit * largest_value * (2 * weight + 5 * tiles + 2 * splits + 2);
}

template <typename Cell>
void ExpectReference(const Case<Cell>& c, const std::vector<float>& out) {
  const Heads& heads = c.heads;
  const auto to_floats = [](const std::vector<Cell>& cells) {
    std::vector<float> floats;
    for (const Cell cell : cells) floats.push_back(cuda::ToFloat(cell));
    return floats;
  };
  const std::vector<float> keys = to_floats(c.keys);
  const std::vector<float> values = to_floats(c.values);
  const Shape cache{static_cast<int64_t>(keys.size()) / heads.num_kv_heads /
                        16 / heads.head_dim,
                    heads.num_kv_heads, 16, heads.head_dim};
  const double scale = 1 / std::sqrt(static_cast<double>(heads.head_dim));
  for (size_t s = 0; s + 1 < c.starts.size(); ++s) {
    const auto table = std::span(c.tables).subspan(
        c.table_starts[s], c.table_starts[s + 1] - c.table_starts[s]);
    for (int t = c.starts[s]; t < c.starts[s + 1]; ++t) {
      const float* q = c.q.data() + int64_t{t} * c.Width();
      const auto expected = reference::Attention(
          {q, DType::kF32, Shape{c.Width()}}, View(keys, cache),
          View(values, cache), table, c.positions[t]);
      for (int h = 0; h < heads.num_heads; ++h) {
        double a = 0, largest = 0;
        for (int p = 0; p <= c.positions[t]; ++p) {
          const int64_t cell = c.CellOf(
              table[p / 16], p, h / (heads.num_heads / heads.num_kv_heads));
          double sum = 0;
          for (int d = 0; d < heads.head_dim; ++d) {
            sum += std::abs(double{q[h * heads.head_dim + d]} * keys[cell + d]);
            largest = std::max(largest, std::abs(double{values[cell + d]}));
          }
          a = std::max(a, sum * scale);
        }
        const double bound = Bound(heads.head_dim, c.positions[t], a, largest);
        for (int d = 0; d < heads.head_dim; ++d) {
          const int i = h * heads.head_dim + d;
          ASSERT_NEAR(out[int64_t{t} * c.Width() + i], expected[i], bound)
              << "token " << t << ", head " << h << ", dimension " << d;
        }
      }
    }
  }
}

// Whatever way a launch is cut, and alone.
template <typename Cell>
void ExpectOneArithmetic(Case<Cell>& c, const std::vector<float>& expected) {
  for (const Launch& launch : {Launch{true, EmulatedOrder::kAscending, 2},
                               Launch{false, EmulatedOrder::kDescending, 3},
                               Launch{true, EmulatedOrder::kDescending, 1}}) {
    if (std::is_same_v<Cell, float> && launch.num_tiles == 3) continue;
    EXPECT_TRUE(SameBits(c.OnCuda(launch), expected))
        << launch.num_tiles << (launch.apart ? " tiles, apart" : " tiles");
  }
  for (size_t s = 0; s + 1 < c.starts.size(); ++s) {
    // The first, the last, and some between.
    const int step = std::max(1, (c.starts[s + 1] - c.starts[s]) / 5);
    for (int t = c.starts[s]; t < c.starts[s + 1]; t += step) {
      const auto row = expected.begin() + int64_t{t} * c.Width();
      EXPECT_TRUE(SameBits(c.Alone(static_cast<int>(s), t).OnCuda(),
                           std::vector<float>(row, row + c.Width())))
          << "token " << t << " alone";
    }
  }
}

template <typename Cell>
void ExpectGood(const Heads& heads, const std::vector<Chunk>& chunks) {
  SCOPED_TRACE(testing::Message()
               << heads.num_heads << "/" << heads.num_kv_heads << " heads of "
               << heads.head_dim);
  Case<Cell> c(heads, chunks);
  const auto out = c.OnCuda();
  if constexpr (std::is_same_v<Cell, float>) {
    EXPECT_TRUE(SameBits(out, c.OnCpu()));
  } else {
    ExpectReference(c, out);
  }
  ExpectOneArithmetic(c, out);
}

TEST(CudaAttentionTest, OneTokenIsNearTheReference) {
  for (const int position : {0, 1, 15, 16, 63, 64, 65, 255, 256, 257, 700}) {
    SCOPED_TRACE(position);
    ExpectGood<uint16_t>({2, 2, 16}, {{position, 1}});
  }
}

TEST(CudaAttentionTest, EveryShapeOfHeadsIsNearTheReference) {
  for (const Heads& heads :
       {Heads{1, 1, 2}, Heads{2, 1, 8}, Heads{4, 2, 24}, Heads{8, 1, 64},
        Heads{1, 1, 80}, Heads{1, 1, 96}, Heads{1, 1, 100}, Heads{2, 2, 128},
        Heads{3, 1, 32}, Heads{20, 1, 16}, Heads{40, 1, 16}, Heads{1, 1, 36},
        Heads{2, 1, 192}, Heads{1, 1, 512}}) {
    ExpectGood<uint16_t>(heads, {{290, 1}, {50, 20}});
  }
}

TEST(CudaAttentionTest, InF32EveryShapeOfHeadsGivesTheBitsOfTheCpu) {
  for (const Heads& heads :
       {Heads{1, 1, 2}, Heads{4, 2, 24}, Heads{8, 1, 64}, Heads{2, 2, 128},
        Heads{20, 1, 16}, Heads{1, 1, 36}}) {
    ExpectGood<float>(heads, {{290, 1}, {0, 40}});
  }
}

TEST(CudaAttentionTest, InE4m3EveryShapeOfHeadsIsNearTheReference) {
  for (const Heads& heads :
       {Heads{1, 1, 2}, Heads{4, 2, 24}, Heads{8, 1, 64}, Heads{1, 1, 80},
        Heads{1, 1, 100}, Heads{2, 2, 128}, Heads{40, 1, 16}}) {
    ExpectGood<uint8_t>(heads, {{290, 1}, {50, 20}});
  }
}

TEST(CudaAttentionTest, ARaggedBatchIsNearTheReference) {
  ExpectGood<uint16_t>(
      {4, 2, 32}, {{0, 1}, {500, 30}, {0, 17}, {254, 5}, {31, 1}, {0, 300}});
}

TEST(CudaAttentionTest, QueriesOfAnySizeKeepTheirPrecision) {
  Case<uint16_t> c({2, 1, 32}, {{70, 40}});
  // Powers of two that halves do not reach; the keys undo them, or nothing does
  // and all weights are the same. Then rows with a huge element and tiny ones.
  for (const float size : {0x1p-120f, 0x1p-40f, 0x1p-20f, 1.0f, 0x1p10f}) {
    Case<uint16_t> scaled = c;
    for (float& value : scaled.q) value *= size;
    SCOPED_TRACE(size);
    ExpectReference(scaled, scaled.OnCuda());
  }
  for (size_t i = 0; i < c.q.size(); i += 32) c.q[i] = 100.0f;
  for (size_t i = 1; i < c.q.size(); i += 32) c.q[i] = 0x1p-30f;
  ExpectReference(c, c.OnCuda());
}

template <typename Cell>
void ExpectRotatingOnTheWayChangesNothing() {
  for (const Heads& heads :
       {Heads{4, 2, 16}, Heads{2, 1, 36}, Heads{40, 1, 16}}) {
    Case<Cell> c(heads, {{0, 1}, {63, 1}, {64, 1}, {300, 1}});
    const auto count = static_cast<int64_t>(c.positions.size());
    const int width = heads.num_kv_heads * heads.head_dim;
    std::vector<float> k = RandomFloats(count * width, 21);
    const std::vector<float> v = RandomFloats(count * width, 22);
    const auto cos = RandomFloats(301 * heads.head_dim / 2, 23);
    const auto sin = RandomFloats(301 * heads.head_dim / 2, 24);
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < count; ++s) {
      slots.push_back(int64_t{c.tables[c.table_starts[s + 1] - 1]} * 16 +
                      c.positions[s] % 16);
    }
    Case<Cell> fused = c;
    // Another order of tiles and splits on purpose.
    const auto out =
        fused.OnCuda({.apart = true, .num_tiles = 3}, {.new_keys = k.data(),
                                                       .new_values = v.data(),
                                                       .kv_slots = slots.data(),
                                                       .cos = cos.data(),
                                                       .sin = sin.data()});
    RunEmulated(cuda::RopeAndWriteKv<Cell>{.num_heads = heads.num_heads,
                                           .num_kv_heads = heads.num_kv_heads,
                                           .head_dim = heads.head_dim,
                                           .num_tokens = count,
                                           .positions = c.positions.data(),
                                           .kv_slots = slots.data(),
                                           .cos = cos.data(),
                                           .sin = sin.data(),
                                           .q = c.q.data(),
                                           .k = k.data(),
                                           .v = v.data(),
                                           .keys = c.keys.data(),
                                           .values = c.values.data()});
    EXPECT_TRUE(SameBits(out, c.OnCuda()));
    EXPECT_EQ(fused.keys, c.keys);
    EXPECT_EQ(fused.values, c.values);
  }
}

TEST(CudaAttentionTest, RotatingAndWritingOnTheWayChangesNothing) {
  ExpectRotatingOnTheWayChangesNothing<uint16_t>();
  ExpectRotatingOnTheWayChangesNothing<uint8_t>();
}

TEST(CudaAttentionTest, NanInE4m3StaysWithWhoSeesIt) {
  Case<uint8_t> c({2, 1, 32}, {{0, 80}});
  const auto finite = c.OnCuda();
  c.values[c.CellOf(c.tables[2], 40, 0) + 1] = 0x7f;
  const auto out = c.OnCuda();
  for (int i = 0; i < 80 * 64; ++i) {
    if (i / 64 >= 40 && i % 32 == 1) {
      EXPECT_TRUE(std::isnan(out[i])) << i;
    } else {
      EXPECT_TRUE(SameBits(out[i], finite[i])) << i;
    }
  }
  ExpectOneArithmetic(c, out);
}

TEST(CudaAttentionTest, WhatIsNotFiniteStaysWithWhoSeesIt) {
  for (const float what : {kNan, std::numeric_limits<float>::infinity()}) {
    for (const bool key : {true, false}) {
      SCOPED_TRACE(testing::Message() << (key ? "key " : "value ") << what);
      Case<uint16_t> c({2, 1, 32}, {{0, 80}});
      const auto finite = c.OnCuda();
      // Of position 40, the other dimension.
      (key ? c.keys : c.values)[c.CellOf(c.tables[2], 40, 0) + 1] =
          cuda::FromFloat<uint16_t>(what);
      const auto out = c.OnCuda();
      for (int p = 0; p < 80; ++p) {
        for (int i = 0; i < 64; ++i) {
          const bool sees = p >= 40 && (key || i % 32 == 1);
          const float actual = out[p * 64 + i];
          if (sees) {
            // An infinite key may make a weight of 0, or all.
            EXPECT_TRUE(!std::isfinite(actual) || (key && !std::isnan(what)))
                << p << ", " << i;
          } else {
            EXPECT_TRUE(SameBits(actual, finite[p * 64 + i])) << p << ", " << i;
          }
        }
      }
      ExpectOneArithmetic(c, out);
    }
  }
}

TEST(CudaAttentionTest, LlamaFitsTheSharedMemoryOfEveryDevice) {
  // Compute capability 8.6, 8.9 and 12.0 have 99 KiB.
  for (const Heads& heads : {Heads{32, 32, 128}, Heads{40, 40, 128},
                             Heads{32, 8, 128}, Heads{64, 8, 128}}) {
    const auto shared_of = [&](auto kernel) {
      kernel.args = {.num_heads = heads.num_heads,
                     .num_kv_heads = heads.num_kv_heads,
                     .head_dim = heads.head_dim,
                     .num_tiles = 1};
      kernel.args.tokens_per_block = kernel.TokensPerBlock(kernel.args.group());
      return kernel.shared_bytes();
    };
    EXPECT_LE(shared_of(cuda::Attention<uint16_t, 128>{}), size_t{99} << 10);
    EXPECT_LE(shared_of(cuda::FloatAttention{}), size_t{99} << 10);
  }
}

TEST(CudaAttentionTest, TwoBlocksFitAMultiprocessorOfAnH100) {
  // 227 KiB, and a KiB for each block.
  cuda::Attention<uint16_t, 128> kernel{
      {.num_heads = 32, .num_kv_heads = 32, .head_dim = 128, .num_tiles = 3}};
  EXPECT_LE(kernel.shared_bytes(), size_t{113} << 10);
  kernel.args.num_tiles = 2;
  kernel.args.tokens_per_block = kernel.TokensPerBlock(1);
  EXPECT_LE(kernel.shared_bytes(), size_t{113} << 10);
}

}  // namespace
}  // namespace binarymos
