// Causal attention over the paged KV cache, on tensor cores.
//
//   score[j] = (q · k[j]) * scale
//   per tile of 64 positions: m' = max(m, max score), c = exp(m - m'),
//   p[j] = exp(score[j] - m'), sum = sum * c + Σ p[j], acc = acc * c + Σ p[j]
//   v[j]; splits of 256 positions from nothing, merged ascending
//
// q, out [tokens, heads, head_dim] f32; keys, values [blocks, kv_heads, 16,
// head_dim] f16 or e4m3
//
// Precision. K and V are exactly what the tensor core takes, e4m3 as halves; q
// and p become two halves each, hi + lo (half_mma.h). q is scaled by a power of
// two, so that its largest element is in [2^14, 2^15), p by 2^15: no half that
// matters is subnormal or overflows. 8 queries are the 16 rows of an MMA, row g
// the hi and row g + 8 the lo of query g: one lane has both in its C fragment
// and adds them. So scores and values lose 2^-22 of their terms to the halves,
// and what the sums in f32 lose: the precision of f32, not its bits. An
// infinite value gives NaN.
//
// One arithmetic. An element of C depends on its row of A, its column of B and
// its C. Steps run over dimensions and positions ascending, zeros past the end
// included; maxima are exact, Σ p has one tree. Hence a query's result does not
// depend on who shares its block, on chunks, or on whether splits are apart.
// Masked positions have p = 0, and values past the end are zeros, for 0 * NaN
// is NaN; where a query's tile holds an infinity or NaN that another query of
// the block may see and it may not, each token's turn has what follows cleared
// (AddValuesByToken).
//
// Threads. A block has a KV head and up to 32 queries (8 where heads are longer
// than 128): of consecutive tokens, all heads of a group. Tiles of K and V lie
// in shared memory, the next one or two on their way (cp.async). Of a tile each
// of the four warps has 16 positions of the scores and every fourth 16 of the
// values' dimensions, for all queries; weights go from the one to the other by
// way of shared memory. Three barriers per tile. One block does all splits of
// its queries, or, where few queries have long contexts, one split each, and
// MergeAttention follows.
//
// Per tile of head_dim 128, 32 queries: 512 MMAs; 168 KiB through shared
// memory (keys 16, queries 64, weights 8 and 32, values 16, copies 32), 1,340
// clocks; 1,200 instructions per warp, half of them exponentials, 1,200 clocks.
// 8 queries: 128 MMAs, 90 KiB, 720 clocks.
//
// Decode, bytes: 4 head_dim per position and KV head. 2 blocks per
// multiprocessor with 64 KiB each on their way, where 20 KiB at 4 TB/s would
// do; a tile comes in 2,000 clocks and takes 900. Predicted for 7B, context
// 2,048, on an H200 (read at up to 3.9 TB/s, a layer and sequence 34 MB): 64
// sequences 0.61 ms per layer, 8 sequences 77 us, 90 % of what a read reaches.
// In e4m3 half the bytes, 58 KiB through shared memory for 8 queries, and per
// warp and tile 64 conversions more and as many permutations: a tile comes in
// 1,000 clocks and takes 750. 64 sequences 0.32 ms, 8 sequences 41 us, 85 %.
// Before compute capability 8.9 a conversion is 10 instructions.
//
// A prompt of 2,048, 7B: 32 heads of 64 blocks of 32 queries, 16.5 tiles each:
// 256 tiles per multiprocessor. MMAs 0.12 ms, shared memory 0.19, instructions
// 0.17, K and V from L2 (1.1 GB) 0.2. Two blocks per multiprocessor overlap
// them in part. Predicted: 0.4 ms per layer, in e4m3 too.
#pragma once

#include "engine/kernels/cuda/attention_args.h"
#include "engine/kernels/cuda/half_mma.h"
#include "engine/kernels/cuda/kv_cells.h"

namespace binarymos::cuda {

// Cells are uint16_t (f16) or uint8_t (e4m3); kMaxDim is 128 or 512.
template <typename Cell, int kMaxDim>
struct Attention {
  static constexpr int kMaxHeadDim = kMaxDim;
  static constexpr int kMaxTiles = 3;
  static constexpr int kThreads = 128;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kStep = kHalfMmaDepth;  // dimensions or positions
  static constexpr int kGroupQueries = 8;      // that share an MMA
  static constexpr int kGroups = kMaxHeadDim <= 128 ? 4 : 1;
  static constexpr int kMaxQueries = kGroups * kGroupQueries;
  // Steps of the values' dimensions that a warp has.
  static constexpr int kUnits = kMaxHeadDim / (kStep * kWarps);

  AttentionArgs args;
  Cell* keys = nullptr;  // written with args.new_keys only
  Cell* values = nullptr;

  static constexpr int TokensPerBlock(int group) {
    return group >= kMaxQueries ? 1 : kMaxQueries / group;
  }

  Grid grid() const {
    return {args.num_blocks * args.num_kv_heads * NumParts(),
            args.num_splits == 0 ? 1 : args.num_splits};
  }
  size_t shared_bytes() const {
    const size_t queries = size_t{1} * AllocatedGroups() * kGroupQueries;
    return size_t{2} * args.num_tiles * TileCells() * sizeof(Cell) +
           sizeof(Floats4) * AllocatedGroups() * kUnits * kThreads +
           queries * (2 * sizeof(uint16_t) * (QueryStride() + kWeightStride) +
                      sizeof(float) * (2 * kWarps + 1)) +
           sizeof(uint32_t);
  }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    const bool apart = args.num_splits != 0;
    const auto first = static_cast<int>(apart ? block.y() : 0);
    const Work work = WorkOf(block.x(), first, apart);
    if (first >= work.queries.num_splits) return;  // the whole block
    const Memory memory = Carve(static_cast<char*>(block.shared()));
    const int last_tile = work.last_tile();
    ClearPadding(block, memory);
    const int ahead = args.num_tiles > 1 ? args.num_tiles - 1 : 1;
    for (int i = 0; i < ahead; ++i) {
      CopyTile(block, work, work.first_tile() + i, memory);
    }
    LoadQueries(block, work, memory);
    State<Block> state;
    for (int tile = work.first_tile(); tile <= last_tile; ++tile) {
      if (tile % kTilesPerSplit == 0) StartSplit(block, state);
      if (args.num_tiles == 3) {
        block.template AwaitCopies<1>();
      } else {
        block.template AwaitCopies<0>();
      }
      if (work.copied < work.past && tile == last_tile) {
        AddNewPosition(block, work, memory);
      }
      block.Sync();  // the tile is there, and everyone is done with the last
      if (args.num_tiles > 1) {
        CopyTile(block, work, tile + ahead, memory);
      }
      const bool careful = tile == last_tile && work.queries.num_tokens > 1;
      if (careful) FindNonFinite(block, work, tile, memory);
      WeighTile(block, work, tile, state, memory);
      if (careful && *memory.found != 0) {
        AddValuesByToken(block, work, tile, state, memory);
      } else {
        AddValues(block, work, tile, state, memory);
      }
      if (args.num_tiles == 1) {
        block.Sync();
        CopyTile(block, work, tile + 1, memory);
      }
      if (tile != last_tile && (tile + 1) % kTilesPerSplit != 0) continue;
      if (apart) {
        StoreStates(block, work, first, state);
      } else {
        Merge(block, work, tile / kTilesPerSplit, state, memory);
      }
    }
    if (!apart) StoreOutputs(block, work, state, memory);
  }

 private:
  using Cells = KvCells<Cell>;

  static constexpr int kTilesPerSplit = kAttentionSplit / kAttentionTile;
  static constexpr int kLoadBytes = 32;  // of a row, by one load
  static constexpr int kLoadDims = kLoadBytes / sizeof(Cell);
  static constexpr int kVector = 16 / sizeof(Cell);  // cells per copy
  // Rows are an odd number of 16 bytes apart: 8 of them are in all banks.
  static constexpr int kWeightStride = kAttentionTile + 8;
  static constexpr float kWeightScale = 0x1p15f;

  // What a block computes. With more heads per KV head than a block has
  // queries, parts of them, of one token.
  struct Work {
    QueryBlock queries;
    int kv_head;
    int first_head;  // of all heads
    int num_heads;
    int first_split;
    int past;    // the first position that no query sees, in these splits
    int copied;  // the first position that is not copied from the cache

    BINARYMOS_DEVICE int first_tile() const {
      return first_split * kTilesPerSplit;
    }
    BINARYMOS_DEVICE int last_tile() const {
      return (past - 1) / kAttentionTile;
    }
    BINARYMOS_DEVICE int count() const {
      return queries.num_tokens * num_heads;
    }
    // Of rows without a query, those of the last one.
    BINARYMOS_DEVICE int TokenOf(int query) const {
      const int last = count() - 1;
      return queries.first_token + (query < last ? query : last) / num_heads;
    }
    BINARYMOS_DEVICE int HeadOf(int query) const {
      return first_head + query % num_heads;
    }
  };

  // Shared memory.
  struct Memory {
    Cell* keys;         // [num_tiles][kAttentionTile, Stride()]
    Cell* values;       // same
    Floats4* total;     // [groups][kUnits][kThreads]: of the splits before
    uint16_t* q;        // [groups][16, QueryStride()]: 8 rows of hi, 8 of lo
    uint16_t* weights;  // [groups][16, kWeightStride], same rows
    float* maxima;      // [queries][kWarps]
    float* sums;        // [queries][kWarps]
    float* factors;     // [queries] of scores: scale, and the power of two of q
    uint32_t* found;    // whether AddValuesByToken is needed
  };

  // In registers: a lane has queries lane / 4 of each group, in each warp.
  template <typename Block>
  struct State {
    // Of the split: rows are hi and lo weights, columns dimensions of a unit.
    typename Block::template PerThread<FloatFragment> acc[kGroups][kUnits][2];
    typename Block::template PerThread<float> max[kGroups];
    typename Block::template PerThread<float> sum[kGroups];
    typename Block::template PerThread<float> correction[kGroups];
    // Of the splits before it; their values are in Memory::total.
    typename Block::template PerThread<float> total_max[kGroups];
    typename Block::template PerThread<float> total_sum[kGroups];
  };

  // Parts of the heads that share a KV head.
  constexpr int NumParts() const {
    return static_cast<int>(CeilDiv(args.group(), kMaxQueries));
  }
  // Of 8 queries, in the fullest block.
  constexpr int AllocatedGroups() const {
    const int64_t queries = int64_t{1} * args.tokens_per_block * args.group();
    const int64_t groups = CeilDiv(queries, kGroupQueries);
    return groups < kGroups ? static_cast<int>(groups) : kGroups;
  }
  // head_dim up to whole loads.
  constexpr int Padded() const {
    return static_cast<int>(CeilDiv(args.head_dim, kLoadDims)) * kLoadDims;
  }
  constexpr int Stride() const { return Padded() + kVector; }
  constexpr int QueryStride() const { return Padded() + 8; }
  constexpr int TileCells() const { return kAttentionTile * Stride(); }

  BINARYMOS_DEVICE Work WorkOf(int64_t x, int first_split, bool apart) const {
    const int parts = NumParts();
    const auto in_block = static_cast<int>(x % (args.num_kv_heads * parts));
    const int kv_head = in_block / parts;
    const int first = in_block % parts * kMaxQueries;
    const int left = args.group() - first;
    const QueryBlock queries = args.blocks[x / (args.num_kv_heads * parts)];
    const int past =
        args.PastOf(queries, apart ? first_split + 1 : queries.num_splits);
    return {queries,
            kv_head,
            kv_head * args.group() + first,
            left < kMaxQueries ? left : kMaxQueries,
            first_split,
            past,
            args.CopiedOf(queries, past)};
  }

  BINARYMOS_DEVICE Memory Carve(char* shared) const {
    Memory memory;
    const int tiles = args.num_tiles * TileCells();
    const int queries = AllocatedGroups() * kGroupQueries;
    memory.keys = reinterpret_cast<Cell*>(shared);
    memory.values = memory.keys + tiles;
    memory.total = reinterpret_cast<Floats4*>(memory.values + tiles);
    memory.q = reinterpret_cast<uint16_t*>(
        memory.total + AllocatedGroups() * kUnits * kThreads);
    memory.weights = memory.q + 2 * queries * QueryStride();
    memory.maxima =
        reinterpret_cast<float*>(memory.weights + 2 * queries * kWeightStride);
    memory.sums = memory.maxima + queries * kWarps;
    memory.factors = memory.sums + queries * kWarps;
    memory.found = reinterpret_cast<uint32_t*>(memory.factors + queries);
    return memory;
  }

  BINARYMOS_DEVICE int64_t OutputOf(const Work& work, int query) const {
    return (int64_t{work.TokenOf(query)} * args.num_heads +
            work.HeadOf(query)) *
           args.head_dim;
  }
  // Positions of the tile that the query sees, 1 or more; maybe more than all.
  BINARYMOS_DEVICE int Visible(const Work& work, int query, int tile) const {
    if (tile < work.last_tile()) return kAttentionTile;
    return args.positions[work.TokenOf(query)] + 1 - tile * kAttentionTile;
  }
  // Of the buffers that tiles take in turn, the tile's.
  BINARYMOS_DEVICE int BufferOf(int tile) const {
    return tile % args.num_tiles * TileCells();
  }
  // Whether a group has queries: the same for the whole block.
  static BINARYMOS_DEVICE bool Has(const Work& work, int group) {
    return group * kGroupQueries < work.count();
  }
  // Whether any warp has the unit, and which step of dimensions it is. Warps
  // without it repeat the last.
  BINARYMOS_DEVICE bool HasUnit(int unit) const {
    return StepOf(0, unit) * kStep < Padded();
  }
  static BINARYMOS_DEVICE int StepOf(int warp, int unit) {
    constexpr int kSteps = Cells::kStepsPerLoad;
    return (warp + unit / kSteps * kWarps) * kSteps + unit % kSteps;
  }

  // --- Into shared memory ---------------------------------------------------

  // Zeros past head_dim, which no copy touches.
  template <typename Block>
  BINARYMOS_DEVICE void ClearPadding(Block& block, const Memory& memory) const {
    const int columns = Padded() - args.head_dim;
    block.ForEach([&](int thread) {
      if (thread == 0) *memory.found = 0;
      if (columns == 0) return;
      const int rows = 2 * args.num_tiles * kAttentionTile;
      for (int row = thread; row < rows; row += kThreads) {
        for (int i = 0; i < columns; ++i) {
          memory.keys[row * Stride() + args.head_dim + i] = Cell{};
        }
      }
    });
  }

  // Starts to copy a tile; values of positions that nobody sees become zeros.
  // Nothing if there is no such tile. One group of copies in any case.
  template <typename Block>
  BINARYMOS_DEVICE void CopyTile(Block& block, const Work& work, int tile,
                                 const Memory& memory) const {
    if (tile <= work.last_tile()) {
      block.ForEach([&](int thread) {
        if (args.head_dim % kVector == 0) {
          CopyRows<kVector>(block, thread, work, tile, memory);
        } else {
          CopyRows<2>(block, thread, work, tile, memory);
        }
      });
    }
    block.CommitCopies();
  }

  template <int kCount, typename Block>
  BINARYMOS_DEVICE void CopyRows(Block& block, int thread, const Work& work,
                                 int tile, const Memory& memory) const {
    using Elements = Pack<Cell, kCount>;
    constexpr int kTogether = 4;  // lookups of pages
    const int32_t* table =
        args.block_tables + args.block_table_starts[work.queries.sequence];
    const int columns = args.head_dim / kCount;
    const int start = tile * kAttentionTile;
    Cell* to_keys = memory.keys + BufferOf(tile);
    Cell* to_values = memory.values + BufferOf(tile);
    for (int column = thread % columns; column < columns; column += kThreads) {
      const int rows = columns < kThreads ? kThreads / columns : 1;
      if (thread / columns >= rows) break;
      for (int row = thread / columns; row < kAttentionTile;
           row += kTogether * rows) {
        int64_t cells[kTogether] = {};
        BINARYMOS_UNROLL
        for (int i = 0; i < kTogether; ++i) {
          const int j = row + i * rows;
          const int position = start + j;
          if (j >= kAttentionTile || position >= work.copied) continue;
          cells[i] = CellOf(table[position / kKvPage], position, work.kv_head) +
                     column * kCount;
        }
        BINARYMOS_UNROLL
        for (int i = 0; i < kTogether; ++i) {
          const int j = row + i * rows;
          if (j >= kAttentionTile) break;
          const int to = j * Stride() + column * kCount;
          if (start + j >= work.past) {
            *reinterpret_cast<Elements*>(to_values + to) = Elements{};
          } else if (start + j >= work.copied) {
            continue;  // AddNewPosition has it
          } else if constexpr (sizeof(Elements) == 16) {
            block.CopyAsync(to_keys + to, keys + cells[i]);
            block.CopyAsync(to_values + to, values + cells[i]);
          } else {
            *reinterpret_cast<Elements*>(to_keys + to) =
                LoadPack<Elements>(keys + cells[i]);
            *reinterpret_cast<Elements*>(to_values + to) =
                LoadPack<Elements>(values + cells[i]);
          }
        }
      }
    }
  }

  // The first cell of a position that is in this page.
  BINARYMOS_DEVICE int64_t CellOf(int64_t page, int64_t position,
                                  int kv_head) const {
    return ((page * args.num_kv_heads + kv_head) * kKvPage +
            position % kKvPage) *
           args.head_dim;
  }

  // Puts the token's own key and value into its tile and into the cache.
  template <typename Block>
  BINARYMOS_DEVICE void AddNewPosition(Block& block, const Work& work,
                                       const Memory& memory) const {
    const int position = work.past - 1;
    const int64_t token = work.queries.first_token;
    const int64_t from =
        (token * args.num_kv_heads + work.kv_head) * args.head_dim;
    const int to = BufferOf(position / kAttentionTile) +
                   position % kAttentionTile * Stride();
    const bool writes = work.first_head == work.kv_head * args.group();
    block.ForEach([&](int thread) {
      const int64_t slot = args.kv_slots[token];
      const int64_t cell = CellOf(slot / kKvPage, slot, work.kv_head);
      for (int d = thread; d < args.head_dim; d += kThreads) {
        const auto key =
            FromFloat<Cell>(args.Rotated(args.new_keys + from, token, d));
        const auto value = FromFloat<Cell>(args.new_values[from + d]);
        memory.keys[to + d] = key;
        memory.values[to + d] = value;
        if (!writes) continue;
        keys[cell + d] = key;
        values[cell + d] = value;
      }
    });
  }

  // A warp per query in turn.
  template <typename Block>
  BINARYMOS_DEVICE void LoadQueries(Block& block, const Work& work,
                                    const Memory& memory) const {
    constexpr int kPerLane = kMaxHeadDim / kWarp;
    for (int first = 0; first < work.count(); first += kWarps) {
      typename Block::template PerThread<Pack<float, kPerLane>> elements;
      typename Block::template PerThread<uint32_t> largest;
      block.ForEach([&](int thread) {
        const int query = first + thread / kWarp;
        largest[thread] = 0;
        BINARYMOS_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
          const int d = thread % kWarp + i * kWarp;
          float& element = elements[thread].v[i];
          element = 0.0f;
          if (d >= args.head_dim || query >= work.count()) continue;
          const float* q = args.q + OutputOf(work, query);
          element = args.new_keys == nullptr
                        ? q[d]
                        : args.Rotated(q, work.TokenOf(query), d);
          const uint32_t bits = FloatBits(element) & 0x7fffffffu;
          if (bits > largest[thread]) largest[thread] = bits;
        }
      });
      largest = block.WarpMax(largest);
      block.ForEach([&](int thread) {
        const int query = first + thread / kWarp;
        if (query >= work.count()) return;
        // Of the largest element; from 15 on, so that the inverse is normal.
        const uint32_t raw = largest[thread] >> 23;
        const uint32_t exponent = raw < 15 ? 15 : raw > 254 ? 254 : raw;
        const float up = BitsFloat((268 - exponent) << 23);
        const float down = BitsFloat((exponent - 14) << 23);
        if (thread % kWarp == 0) memory.factors[query] = down * args.scale;
        uint16_t* hi = memory.q + RowOf(query) * QueryStride();
        uint16_t* lo = hi + kGroupQueries * QueryStride();
        BINARYMOS_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
          const int d = thread % kWarp + i * kWarp;
          if (d >= Padded()) continue;
          const HalfPair pair = SplitIntoHalves(elements[thread].v[i] * up);
          const int slot = d / kStep * kStep + Cells::SlotOf(d % kStep);
          hi[slot] = pair.hi;
          lo[slot] = pair.lo;
        }
      });
    }
  }

  // The row of a query's hi halves.
  static BINARYMOS_DEVICE int RowOf(int query) {
    return query / kGroupQueries * kHalfMmaRows + query % kGroupQueries;
  }

  // --- One tile -------------------------------------------------------------

  // Sets where operand A is loaded from: 16 rows of `stride` halves.
  template <typename Block>
  static BINARYMOS_DEVICE typename Block::template PerThread<Words4> LoadRows(
      Block& block, const uint16_t* rows, int stride) {
    typename Block::template PerThread<const void*> from;
    block.ForEach([&](int thread) {
      const int lane = thread % kWarp;
      from[thread] = rows + lane % kHalfMmaRows * stride + lane / 16 * 8;
    });
    return block.LoadMatrices(from);
  }

  // Scores of the tile, then weights in memory.weights and state.correction.
  template <typename Block>
  BINARYMOS_DEVICE void WeighTile(Block& block, const Work& work, int tile,
                                  State<Block>& state,
                                  const Memory& memory) const {
    typename Block::template PerThread<FloatFragment> scores[kGroups][2];
    Score(block, work, tile, scores, memory);
    BINARYMOS_UNROLL
    for (int r = 0; r < kGroups; ++r) {
      if (!Has(work, r)) continue;
      typename Block::template PerThread<float> largest;
      block.ForEach([&](int thread) {
        const int lane = thread % kWarp;
        const int query = r * kGroupQueries + lane / 4;
        const int visible = Visible(work, query, tile);
        const float factor = memory.factors[query];
        largest[thread] = -Infinity();
        BINARYMOS_UNROLL
        for (int n = 0; n < 2; ++n) {
          float* score = scores[r][n][thread].v;
          BINARYMOS_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int j = thread / kWarp * kStep + n * 8 + lane % 4 * 2 + i;
            // hi and lo
            score[i] =
                j < visible ? (score[i] + score[i + 2]) * factor : -Infinity();
            largest[thread] = Larger(score[i], largest[thread]);
          }
        }
      });
      BINARYMOS_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        typename Block::template PerThread<float> other =
            block.ShuffleXor(largest, mask);
        block.ForEach([&](int thread) {
          largest[thread] = Larger(largest[thread], other[thread]);
        });
      }
      block.ForEach([&](int thread) {
        const int lane = thread % kWarp;
        if (lane % 4 != 0) return;
        memory
            .maxima[(r * kGroupQueries + lane / 4) * kWarps + thread / kWarp] =
            largest[thread];
      });
    }
    block.Sync();
    BINARYMOS_UNROLL
    for (int r = 0; r < kGroups; ++r) {
      if (Has(work, r)) StoreWeights(block, r, scores[r], state, memory);
    }
    block.Sync();
  }

  // Columns of `scores` are positions, 16 per warp.
  template <typename Block>
  BINARYMOS_DEVICE void Score(
      Block& block, const Work& work, int tile,
      typename Block::template PerThread<FloatFragment> (&scores)[kGroups][2],
      const Memory& memory) const {
    typename Block::template PerThread<const char*> rows;
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int r = 0; r < kGroups; ++r) {
        scores[r][0][thread] = {};
        scores[r][1][thread] = {};
      }
      const int lane = thread % kWarp;
      const int j = thread / kWarp * kStep + lane % 8 + lane / 16 * 8;
      rows[thread] = reinterpret_cast<const char*>(
                         memory.keys + BufferOf(tile) + j * Stride()) +
                     lane / 8 % 2 * 16;
    });
    const int num_loads = Padded() / kLoadDims;
    BINARYMOS_UNROLL_BY_2
    for (int i = 0; i < num_loads; ++i) {
      typename Block::template PerThread<const void*> from;
      block.ForEach(
          [&](int thread) { from[thread] = rows[thread] + i * kLoadBytes; });
      typename Block::template PerThread<Words4> load =
          block.LoadMatrices(from);
      BINARYMOS_UNROLL
      for (int step = 0; step < Cells::kStepsPerLoad; ++step) {
        typename Block::template PerThread<HalfFragmentB> columns[2];
        block.ForEach([&](int thread) {
          const FragmentPair pair = Cells::Keys(load[thread], step);
          columns[0][thread] = pair.tile[0];
          columns[1][thread] = pair.tile[1];
        });
        BINARYMOS_UNROLL
        for (int r = 0; r < kGroups; ++r) {
          if (!Has(work, r)) continue;
          auto q = LoadRows(block,
                            memory.q + r * kHalfMmaRows * QueryStride() +
                                i * kLoadDims + step * kStep,
                            QueryStride());
          block.HalfMma(scores[r][0], q, columns[0]);
          block.HalfMma(scores[r][1], q, columns[1]);
        }
      }
    }
  }

  // Weights of group r, and what the tile's maximum does to what was before.
  template <typename Block>
  BINARYMOS_DEVICE void StoreWeights(
      Block& block, int r,
      typename Block::template PerThread<FloatFragment> (&scores)[2],
      State<Block>& state, const Memory& memory) const {
    typename Block::template PerThread<float> sum;
    block.ForEach([&](int thread) {
      const int lane = thread % kWarp;
      const int query = r * kGroupQueries + lane / 4;
      const auto maxima = LoadPack<Floats4>(memory.maxima + query * kWarps);
      float max = state.max[r][thread];
      BINARYMOS_UNROLL
      for (int i = 0; i < kWarps; ++i) max = Larger(maxima.v[i], max);
      state.correction[r][thread] = Exp(state.max[r][thread] - max);
      state.max[r][thread] = max;
      uint16_t* hi = memory.weights + RowOf(query) * kWeightStride +
                     thread / kWarp * kStep + lane % 4 * 2;
      float sums[2];
      BINARYMOS_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float* score = scores[n][thread].v;
        // Exp(-inf) is 0.
        const float a = Exp(score[0] - max) * kWeightScale;
        const float b = Exp(score[1] - max) * kWeightScale;
        sums[n] = a + b;
        const HalfPair first = SplitIntoHalves(a);
        const HalfPair second = SplitIntoHalves(b);
        *reinterpret_cast<uint32_t*>(hi + n * 8) =
            PackHalves(first.hi, second.hi);
        *reinterpret_cast<uint32_t*>(hi + kGroupQueries * kWeightStride +
                                     n * 8) = PackHalves(first.lo, second.lo);
      }
      sum[thread] = sums[0] + sums[1];
    });
    BINARYMOS_UNROLL
    for (int mask = 1; mask < 4; mask *= 2) {
      typename Block::template PerThread<float> other =
          block.ShuffleXor(sum, mask);
      block.ForEach([&](int thread) { sum[thread] += other[thread]; });
    }
    block.ForEach([&](int thread) {
      const int lane = thread % kWarp;
      if (lane % 4 != 0) return;
      memory.sums[(r * kGroupQueries + lane / 4) * kWarps + thread / kWarp] =
          sum[thread];
    });
  }

  // Sums and values of what was before, as the new maximum wants them.
  template <typename Block>
  BINARYMOS_DEVICE void Correct(Block& block, const Work& work,
                                State<Block>& state,
                                const Memory& memory) const {
    BINARYMOS_UNROLL
    for (int r = 0; r < kGroups; ++r) {
      if (!Has(work, r)) continue;
      block.ForEach([&](int thread) {
        const int query = r * kGroupQueries + thread % kWarp / 4;
        const auto sums = LoadPack<Floats4>(memory.sums + query * kWarps);
        const float sum = (sums.v[0] + sums.v[1]) + (sums.v[2] + sums.v[3]);
        const float correction = state.correction[r][thread];
        state.sum[r][thread] = Fma(state.sum[r][thread], correction, sum);
        if (correction == 1.0f) return;
        BINARYMOS_UNROLL
        for (int u = 0; u < kUnits; ++u) {
          BINARYMOS_UNROLL
          for (int i = 0; i < 4; ++i) {
            state.acc[r][u][0][thread].v[i] *= correction;
            state.acc[r][u][1][thread].v[i] *= correction;
          }
        }
      });
    }
  }

  // The values of 16 positions from `step` on, in the dimensions of a load.
  template <typename Block>
  BINARYMOS_DEVICE typename Block::template PerThread<Words4> LoadValues(
      Block& block, int tile, int step, int unit, const Memory& memory) const {
    typename Block::template PerThread<const void*> from;
    block.ForEach([&](int thread) {
      const int lane = thread % kWarp;
      const int last = Padded() / kStep - Cells::kStepsPerLoad;
      const int at = StepOf(thread / kWarp, unit);
      const Cell* row = memory.values + BufferOf(tile) +
                        (step * kStep + lane % kHalfMmaRows) * Stride() +
                        (at < last ? at : last) * kStep;
      from[thread] = reinterpret_cast<const char*>(row) + lane / 16 * 16;
    });
    return block.LoadTransposed(from);
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddValues(Block& block, const Work& work, int tile,
                                  State<Block>& state,
                                  const Memory& memory) const {
    Correct(block, work, state, memory);
    BINARYMOS_NO_UNROLL
    for (int step = 0; step < kAttentionTile / kStep; ++step) {
      typename Block::template PerThread<HalfFragmentB> columns[kUnits][2];
      BINARYMOS_UNROLL
      for (int u = 0; u < kUnits; u += Cells::kStepsPerLoad) {
        if (!HasUnit(u)) continue;
        auto load = LoadValues(block, tile, step, u, memory);
        block.ForEach([&](int thread) {
          BINARYMOS_UNROLL
          for (int i = 0; i < Cells::kStepsPerLoad; ++i) {
            const FragmentPair pair = Cells::Values(load[thread], i);
            columns[u + i][0][thread] = pair.tile[0];
            columns[u + i][1][thread] = pair.tile[1];
          }
        });
      }
      BINARYMOS_UNROLL
      for (int r = 0; r < kGroups; ++r) {
        if (!Has(work, r)) continue;
        auto weights = LoadRows(
            block,
            memory.weights + r * kHalfMmaRows * kWeightStride + step * kStep,
            kWeightStride);
        BINARYMOS_UNROLL
        for (int u = 0; u < kUnits; ++u) {
          if (!HasUnit(u)) continue;
          block.HalfMma(state.acc[r][u][0], weights, columns[u][0]);
          block.HalfMma(state.acc[r][u][1], weights, columns[u][1]);
        }
      }
    }
  }

  // Sets memory.found if some queries see an infinite value or NaN in this tile
  // and others do not.
  template <typename Block>
  BINARYMOS_DEVICE void FindNonFinite(Block& block, const Work& work, int tile,
                                      const Memory& memory) const {
    const int start = tile * kAttentionTile;
    const int begin = args.positions[work.queries.first_token] + 1 - start;
    const int end = work.past - start;
    const int words = Padded() * static_cast<int>(sizeof(Cell)) / 4;
    const Cell* rows = memory.values + BufferOf(tile);
    block.ForEach([&](int thread) {
      for (int i = thread; i < (end - begin) * words; i += kThreads) {
        const Cell* row = rows + (begin + i / words) * Stride();
        const uint32_t word = reinterpret_cast<const uint32_t*>(row)[i % words];
        if (Cells::HasNonFinite(word)) *memory.found = 1;
      }
    });
  }

  // AddValues, with the same bits where values are finite: a token in turn,
  // with zeros for the values that it does not see.
  template <typename Block>
  BINARYMOS_DEVICE void AddValuesByToken(Block& block, const Work& work,
                                         int tile, State<Block>& state,
                                         const Memory& memory) const {
    Correct(block, work, state, memory);
    BINARYMOS_NO_UNROLL
    for (int i = 0; i < work.queries.num_tokens; ++i) {
      const int token = work.queries.first_token + i;
      const int visible = args.positions[token] + 1 - tile * kAttentionTile;
      BINARYMOS_UNROLL
      for (int u = 0; u < kUnits; ++u) {
        if (!HasUnit(u)) continue;
        BINARYMOS_UNROLL
        for (int r = 0; r < kGroups; ++r) {
          if (!Has(work, r)) continue;
          AddValuesOfToken(block, work, tile, token, visible, u, r, state,
                           memory);
        }
      }
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE void AddValuesOfToken(Block& block, const Work& work,
                                         int tile, int token, int visible,
                                         int u, int r, State<Block>& state,
                                         const Memory& memory) const {
    typename Block::template PerThread<FloatFragment> sums[2];
    block.ForEach([&](int thread) {
      sums[0][thread] = state.acc[r][u][0][thread];
      sums[1][thread] = state.acc[r][u][1][thread];
    });
    BINARYMOS_NO_UNROLL
    for (int step = 0; step < kAttentionTile / kStep; ++step) {
      constexpr int kSteps = Cells::kStepsPerLoad;
      auto load = LoadValues(block, tile, step, u / kSteps * kSteps, memory);
      auto weights = LoadRows(
          block,
          memory.weights + r * kHalfMmaRows * kWeightStride + step * kStep,
          kWeightStride);
      typename Block::template PerThread<HalfFragmentB> columns[2];
      block.ForEach([&](int thread) {
        const FragmentPair pair = Cells::Values(load[thread], u % kSteps);
        BINARYMOS_UNROLL
        for (int n = 0; n < 2; ++n) {
          BINARYMOS_UNROLL
          for (int w = 0; w < 2; ++w) {
            // Of the two positions in the word: all, one or none.
            const int left = visible - (step * kStep + w * 8 + thread % 4 * 2);
            const uint32_t mask = left > 1    ? 0xffffffffu
                                  : left == 1 ? 0x0000ffffu
                                              : 0u;
            columns[n][thread].v[w] = pair.tile[n].v[w] & mask;
          }
        }
      });
      block.HalfMma(sums[0], weights, columns[0]);
      block.HalfMma(sums[1], weights, columns[1]);
    }
    block.ForEach([&](int thread) {
      const int query = r * kGroupQueries + thread % kWarp / 4;
      if (work.TokenOf(query) != token) return;
      state.acc[r][u][0][thread] = sums[0][thread];
      state.acc[r][u][1][thread] = sums[1][thread];
    });
  }

  // --- Splits ---------------------------------------------------------------

  template <typename Block>
  BINARYMOS_DEVICE void StartSplit(Block& block, State<Block>& state) const {
    block.ForEach([&](int thread) {
      BINARYMOS_UNROLL
      for (int r = 0; r < kGroups; ++r) {
        state.max[r][thread] = -Infinity();
        state.sum[r][thread] = 0.0f;
        BINARYMOS_UNROLL
        for (int u = 0; u < kUnits; ++u) {
          state.acc[r][u][0][thread] = {};
          state.acc[r][u][1][thread] = {};
        }
      }
    });
  }

  // The split's values of a unit: hi and lo together. v[2 n + i] is column
  // 2 t + i of tile n.
  template <typename Block>
  static BINARYMOS_DEVICE Floats4 ValuesOf(State<Block>& state, int r, int u,
                                           int thread) {
    const float* a = state.acc[r][u][0][thread].v;
    const float* b = state.acc[r][u][1][thread].v;
    return {{a[0] + a[2], a[1] + a[3], b[0] + b[2], b[1] + b[3]}};
  }

  // Adds the split to those before it.
  template <typename Block>
  BINARYMOS_DEVICE void Merge(Block& block, const Work& work, int split,
                              State<Block>& state, const Memory& memory) const {
    BINARYMOS_UNROLL
    for (int r = 0; r < kGroups; ++r) {
      if (!Has(work, r)) continue;
      block.ForEach([&](int thread) {
        const float max = state.max[r][thread];
        const float sum = state.sum[r][thread];
        float& total_max = state.total_max[r][thread];
        float& total_sum = state.total_sum[r][thread];
        const MergeFactors factors = FactorsOf(total_max, max);
        BINARYMOS_UNROLL
        for (int u = 0; u < kUnits; ++u) {
          const Floats4 split_values = ValuesOf(state, r, u, thread);
          Floats4& total = memory.total[(r * kUnits + u) * kThreads + thread];
          BINARYMOS_UNROLL
          for (int i = 0; i < 4; ++i) {
            total.v[i] = split == 0 ? split_values.v[i]
                                    : Fma(total.v[i], factors.keep,
                                          split_values.v[i] * factors.add);
          }
        }
        total_sum =
            split == 0 ? sum : Fma(total_sum, factors.keep, sum * factors.add);
        total_max = split == 0 ? max : factors.max;
      });
    }
  }

  // Writes the four values of a unit where their dimensions are in the head.
  BINARYMOS_DEVICE void StoreUnit(const Floats4& four, int thread, int u,
                                  float* to) const {
    const int step = StepOf(thread / kWarp, u);
    BINARYMOS_UNROLL
    for (int n = 0; n < 2; ++n) {
      BINARYMOS_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int d = step * kStep + Cells::DimensionOf(n, thread % 4 * 2 + i);
        if (d < args.head_dim) to[d] = four.v[2 * n + i];
      }
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE void StoreOutputs(Block& block, const Work& work,
                                     State<Block>& state,
                                     const Memory& memory) const {
    BINARYMOS_UNROLL
    for (int r = 0; r < kGroups; ++r) {
      if (!Has(work, r)) continue;
      block.ForEach([&](int thread) {
        const int query = r * kGroupQueries + thread % kWarp / 4;
        if (query >= work.count()) return;
        float* out = args.out + OutputOf(work, query);
        BINARYMOS_UNROLL
        for (int u = 0; u < kUnits; ++u) {
          Floats4 four = memory.total[(r * kUnits + u) * kThreads + thread];
          BINARYMOS_UNROLL
          for (float& value : four.v) value /= state.total_sum[r][thread];
          StoreUnit(four, thread, u, out);
        }
      });
    }
  }

  template <typename Block>
  BINARYMOS_DEVICE void StoreStates(Block& block, const Work& work, int split,
                                    State<Block>& state) const {
    BINARYMOS_UNROLL
    for (int r = 0; r < kGroups; ++r) {
      if (!Has(work, r)) continue;
      block.ForEach([&](int thread) {
        const int query = r * kGroupQueries + thread % kWarp / 4;
        if (query >= work.count()) return;
        float* to = args.states + args.StateOf(work.TokenOf(query),
                                               work.HeadOf(query), split);
        if (thread < kWarp && thread % 4 == 0) {
          to[0] = state.max[r][thread];
          to[1] = state.sum[r][thread];
        }
        BINARYMOS_UNROLL
        for (int u = 0; u < kUnits; ++u) {
          StoreUnit(ValuesOf(state, r, u, thread), thread, u, to + 2);
        }
      });
    }
  }
};

}  // namespace binarymos::cuda
