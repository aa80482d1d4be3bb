#include "engine/kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/core/float8.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/reference/attention.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_test_util.h"

namespace binarymos {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct AttentionShape {
  int num_heads;
  int num_kv_heads;
  int head_dim;
};

// Sequences with random queries for every position and a random cache, whose
// blocks are interleaved among the sequences.
class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, std::vector<int> lengths,
                cpu::KvType kv = cpu::KvType::kF16)
      : shape_(shape), lengths_(std::move(lengths)), kv_(kv) {
    tables_.resize(lengths_.size());
    for (bool more = true; more;) {
      more = false;
      for (size_t s = 0; s < lengths_.size(); ++s) {
        const int needed = (lengths_[s] + cpu::kKvPage - 1) / cpu::kKvPage;
        if (static_cast<int>(tables_[s].size()) == needed) continue;
        tables_[s].push_back(num_blocks_++);
        more = true;
      }
    }
    const int64_t cache = CacheShape().num_elements();
    keys16_ = RandomHalves(cache, 1);
    values16_ = RandomHalves(cache, 2);
    for (int64_t i = 0; i < cache; ++i) {
      keys32_.push_back(HalfToFloat(keys16_[i]));
      values32_.push_back(HalfToFloat(values16_[i]));
    }
    if (kv == cpu::KvType::kE4m3) RoundToE4m3();
    for (size_t s = 0; s < lengths_.size(); ++s) {
      queries_.push_back(RandomFloats(lengths_[s] * Width(), 10 + s, 2.0f));
    }
  }

  // A range of a sequence's positions.
  struct Chunk {
    int sequence;
    int first;
    int count;
  };

  // One call with these chunks; the rows of the result follow each other.
  std::vector<float> Run(const cpu::CpuKernels& kernels, int threads,
                         const std::vector<Chunk>& chunks) const {
    std::vector<int32_t> positions, starts = {0}, tables, table_starts = {0};
    std::vector<float> q;
    for (const Chunk& chunk : chunks) {
      const auto& queries = queries_[chunk.sequence];
      for (int i = 0; i < chunk.count; ++i) {
        positions.push_back(chunk.first + i);
      }
      q.insert(q.end(), queries.begin() + chunk.first * Width(),
               queries.begin() + (chunk.first + chunk.count) * Width());
      starts.push_back(static_cast<int32_t>(positions.size()));
      const auto& table = tables_[chunk.sequence];
      tables.insert(tables.end(), table.begin(), table.end());
      table_starts.push_back(static_cast<int32_t>(tables.size()));
    }
    std::vector<float> out(q.size(), kNan);
    ThreadPool pool(threads);
    cpu::CpuAttention attention;
    attention.Run({kernels, pool},
                  {.num_heads = shape_.num_heads,
                   .num_kv_heads = shape_.num_kv_heads,
                   .head_dim = shape_.head_dim,
                   .positions = positions,
                   .query_starts = starts,
                   .block_tables = tables,
                   .block_table_starts = table_starts,
                   .q = q.data(),
                   .keys = CacheOf(keys8_, keys16_, keys32_),
                   .values = CacheOf(values8_, values16_, values32_),
                   .kv = kv_,
                   .out = out.data()});
    return out;
  }

  // All positions of a sequence, `size` at a time.
  std::vector<float> RunInChunks(const cpu::CpuKernels& kernels, int threads,
                                 int sequence, int size) const {
    std::vector<float> all;
    for (int first = 0; first < lengths_[sequence]; first += size) {
      const int count = std::min(size, lengths_[sequence] - first);
      const auto part = Run(kernels, threads, {{sequence, first, count}});
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  std::vector<float> Query(int sequence, int position) const {
    const auto begin = queries_[sequence].begin() + position * Width();
    return {begin, begin + Width()};
  }
  std::vector<double> Reference(int sequence, int position) const {
    return reference::Attention(
        View(Query(sequence, position), {Width()}), View(keys16_, CacheShape()),
        View(values16_, CacheShape()), tables_[sequence], position);
  }

  // u = 2^-24. A score q · k / sqrt(d) has d / 16 + 6 roundings of at most u
  // times |q||k| / sqrt(d); subtracting the maximum rounds once more, at most
  // u times the range of the scores. An error e of every score changes every
  // weight by the factor exp(2e) at most, 1 + 4e is more than that; exp itself
  // adds 2 u, the sum over n weights and the sum over n values at most n u
  // each and a rescaling per tile 4 u. All of it times the largest |v|.
  double Tolerance(int sequence, int position) const {
    double q2 = 0;
    for (const float value : Query(sequence, position)) q2 += value * value;
    double k2 = 0, v = 0;
    for (int64_t i = 0; i < CacheShape().num_elements(); ++i) {
      v = std::max<double>(v, std::abs(values32_[i]));
      if (i % shape_.head_dim == 0) k2_row_ = 0;
      k2_row_ += keys32_[i] * keys32_[i];
      k2 = std::max(k2, k2_row_);
    }
    const double score = std::sqrt(q2 * k2 / shape_.head_dim);
    const double score_error = (shape_.head_dim / 16.0 + 6 + 2) * score;
    const double positions = position + 1;
    const double tiles = positions / cpu::kAttentionTile + 2;
    return kUnit * v * (4 * score_error + 4 + 2 * positions + 8 * tiles);
  }

  // All types of the cache get what e4m3 has, and every finite code is a value.
  void RoundToE4m3() {
    keys8_.resize(keys32_.size());
    values8_.resize(values32_.size());
    for (size_t i = 0; i < keys32_.size(); ++i) {
      keys8_[i] = FloatToE4m3(keys32_[i]);
      keys32_[i] = E4m3ToFloat(keys8_[i]);
      keys16_[i] = FloatToHalf(keys32_[i]);
      const auto code = static_cast<uint8_t>(i * 37);
      SetValue(i, (code & 0x7f) == 0x7f ? 0.0f : E4m3ToFloat(code));
    }
  }
  // REQUIRES: what the cache's type has.
  void SetValue(int64_t index, float value) {
    values32_[index] = value;
    values16_[index] = FloatToHalf(value);
    if (!values8_.empty()) values8_[index] = FloatToE4m3(value);
  }

  std::vector<float>& queries(int sequence) { return queries_[sequence]; }
  // The index in the cache of a position's first element, of KV head 0.
  int64_t CacheIndex(int sequence, int position) const {
    return (int64_t{tables_[sequence][position / cpu::kKvPage]} *
                shape_.num_kv_heads * cpu::kKvPage +
            position % cpu::kKvPage) *
           shape_.head_dim;
  }
  int64_t Width() const { return int64_t{shape_.num_heads} * shape_.head_dim; }

 private:
  Shape CacheShape() const {
    return {num_blocks_, shape_.num_kv_heads, cpu::kKvPage, shape_.head_dim};
  }

  const void* CacheOf(const std::vector<uint8_t>& codes,
                      const std::vector<uint16_t>& halves,
                      const std::vector<float>& floats) const {
    if (kv_ == cpu::KvType::kE4m3) return codes.data();
    if (kv_ == cpu::KvType::kF16) return halves.data();
    return floats.data();
  }

  AttentionShape shape_;
  std::vector<int> lengths_;
  cpu::KvType kv_;
  int num_blocks_ = 0;
  mutable double k2_row_ = 0;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<uint8_t> keys8_, values8_;
  std::vector<uint16_t> keys16_, values16_;
  std::vector<float> keys32_, values32_;
  std::vector<std::vector<float>> queries_;
};

std::vector<float> Row(const std::vector<float>& rows, int64_t row,
                       int64_t width) {
  return {rows.begin() + row * width, rows.begin() + (row + 1) * width};
}

class AttentionTest : public KernelPathTest {};

TEST_P(AttentionTest, IsNearTheReference) {
  const AttentionShape shapes[] = {
      {1, 1, 16}, {2, 2, 8}, {4, 2, 24}, {4, 1, 64}, {2, 1, 128}};
  for (const AttentionShape& shape : shapes) {
    for (const cpu::KvType kv :
         {cpu::KvType::kF16, cpu::KvType::kF32, cpu::KvType::kE4m3}) {
      const AttentionCase c(shape, {1, 300, 65}, kv);
      const auto out =
          c.Run(kernels(), 2, {{0, 0, 1}, {1, 250, 50}, {2, 0, 65}});
      const auto expect_near = [&](int row, int sequence, int position) {
        const auto expected = c.Reference(sequence, position);
        const double tolerance = c.Tolerance(sequence, position);
        for (int64_t i = 0; i < c.Width(); ++i) {
          ASSERT_NEAR(out[row * c.Width() + i], expected[i], tolerance)
              << "sequence " << sequence << ", position " << position;
        }
      };
      expect_near(0, 0, 0);
      // The positions at which tiles and splits begin and end.
      for (const int position : {250, 254, 255, 256, 257, 299}) {
        expect_near(1 + position - 250, 1, position);
      }
      for (const int position : {0, 15, 16, 62, 63, 64}) {
        expect_near(51 + position, 2, position);
      }
    }
  }
}

TEST_P(AttentionTest, ChunksAndThreadsDoNotChangeABit) {
  const AttentionCase c({4, 2, 32}, {290});
  const auto one_by_one = c.RunInChunks(kernels(), 1, 0, 1);
  for (const int size : {7, 16, 64, 100, 290}) {
    for (const int threads : {1, 3, 8}) {
      EXPECT_TRUE(
          SameBits(c.RunInChunks(kernels(), threads, 0, size), one_by_one))
          << size << " tokens, " << threads << " threads";
    }
  }
}

TEST_P(AttentionTest, EveryNumberOfThreadsGivesTheSameBits) {
  // One query over 18 splits: with more than one thread, its splits are shared
  // out, in two waves.
  const AttentionCase c({2, 1, 16}, {4400});
  const std::vector<AttentionCase::Chunk> last = {{0, 4399, 1}};
  const auto one = c.Run(kernels(), 1, last);
  for (int threads = 2; threads <= 8; ++threads) {
    EXPECT_TRUE(SameBits(c.Run(kernels(), threads, last), one)) << threads;
  }
  const auto expected = c.Reference(0, 4399);
  for (int64_t i = 0; i < c.Width(); ++i) {
    EXPECT_NEAR(one[i], expected[i], c.Tolerance(0, 4399));
  }
}

TEST_P(AttentionTest, ARowDoesNotSeeItsNeighbours) {
  const AttentionCase c({4, 4, 16}, {40, 270, 1, 130});
  const std::vector<AttentionCase::Chunk> chunks = {
      {0, 0, 40}, {1, 240, 30}, {2, 0, 1}, {3, 129, 1}};
  const auto all = c.Run(kernels(), 3, chunks);
  int64_t row = 0;
  for (const auto& chunk : chunks) {
    for (int i = 0; i < chunk.count; ++i, ++row) {
      const auto alone =
          c.Run(kernels(), 1, {{chunk.sequence, chunk.first + i, 1}});
      EXPECT_TRUE(SameBits(alone, Row(all, row, c.Width()))) << row;
    }
  }
}

TEST_P(AttentionTest, NanStaysInItsOwnRow) {
  for (const cpu::KvType kv : {cpu::KvType::kF16, cpu::KvType::kE4m3}) {
    AttentionCase c({2, 2, 16}, {80, 80}, kv);
    const auto before = c.Run(kernels(), 2, {{0, 0, 80}, {1, 0, 80}});
    c.queries(0)[33 * c.Width()] = kNan;    // head 0 of position 33
    c.SetValue(c.CacheIndex(1, 50), kNan);  // dimension 0, positions >= 50
    const auto after = c.Run(kernels(), 2, {{0, 0, 80}, {1, 0, 80}});
    for (int64_t row = 0; row < 160; ++row) {
      for (int64_t i = 0; i < c.Width(); ++i) {
        const bool poisoned = (row == 33 && i < 16) || (row >= 130 && i == 0);
        const float value = after[row * c.Width() + i];
        ASSERT_EQ(std::isnan(value), poisoned) << row << ", " << i;
        if (!poisoned) {
          ASSERT_TRUE(SameBits(value, before[row * c.Width() + i]));
        }
      }
    }
  }
}

TEST_P(AttentionTest, InfiniteScoresEndAsNan) {
  AttentionCase c({1, 1, 16}, {20});
  for (int i = 0; i < 16; ++i) {
    c.queries(0)[5 * 16 + i] = std::numeric_limits<float>::max();
  }
  const auto out = c.Run(kernels(), 1, {{0, 0, 20}});
  EXPECT_TRUE(std::isnan(out[5 * 16]));
  EXPECT_TRUE(std::isfinite(out[4 * 16]));
  EXPECT_TRUE(std::isfinite(out[6 * 16]));
}

INSTANTIATE_TEST_SUITE_P(Paths, AttentionTest, kAllPaths, PathName);

using AttentionPathsTest = PathsAgreeTest;

TEST_P(AttentionPathsTest, GivesTheBitsOfThePortablePath) {
  const AttentionShape shapes[] = {
      {2, 2, 8}, {4, 2, 24}, {4, 1, 64}, {1, 1, 80}, {2, 1, 128}};
  for (const AttentionShape& shape : shapes) {
    for (const cpu::KvType kv :
         {cpu::KvType::kF16, cpu::KvType::kF32, cpu::KvType::kE4m3}) {
      const AttentionCase c(shape, {1, 300}, kv);
      for (const std::vector<AttentionCase::Chunk>& chunks :
           {std::vector<AttentionCase::Chunk>{{0, 0, 1}, {1, 270, 30}},
            std::vector<AttentionCase::Chunk>{{1, 299, 1}}}) {
        EXPECT_TRUE(SameBits(c.Run(portable(), 1, chunks),
                             c.Run(kernels(), 1, chunks)));
      }
    }
  }
}

TEST_P(AttentionPathsTest, TheTypeOfTheCacheDoesNotChangeTheArithmetic) {
  AttentionCase f16({2, 1, 32}, {100}, cpu::KvType::kF16);
  AttentionCase f32({2, 1, 32}, {100}, cpu::KvType::kF32);
  const AttentionCase e4m3({2, 1, 32}, {100}, cpu::KvType::kE4m3);
  const auto run = [&](const AttentionCase& c, int first, int count) {
    return c.Run(kernels(), 1, {{0, first, count}});
  };
  EXPECT_TRUE(SameBits(run(f16, 0, 100), run(f32, 0, 100)));
  f16.RoundToE4m3();
  f32.RoundToE4m3();
  for (const auto& [first, count] : {std::pair{0, 100}, {99, 1}}) {
    EXPECT_TRUE(SameBits(run(e4m3, first, count), run(f32, first, count)));
    EXPECT_TRUE(SameBits(run(e4m3, first, count), run(f16, first, count)));
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, AttentionPathsTest, kFastPaths, PathName);

}  // namespace
}  // namespace binarymos
