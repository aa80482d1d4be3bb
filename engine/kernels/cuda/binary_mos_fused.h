// The whole binary linear of one token in one launch, for up to three layers
// that share their input (q, k, v; gate, up). Clusters of eight blocks: compute
// capability 9.0.
//
//   g = softmax(x · gateᵀ)   s_in = g · in_scale   u = x ⊙ s_in
//   y = (quantized u · sign(W)ᵀ) ⊙ (g · out_scale) + bias
//
// x [in] f32, per layer signs [out, in]  ->  y [out] f32; the same bits as
// PrepareBinaryMos and MultiplyBinaryMos, which it replaces where it can. The
// input may be RmsNorm of x, or SwiGlu of x and another: the same bits again,
// and their launches are spared.
//
// Threads. A cluster has a range of rows of one layer; its block r computes
// group r of the canonical order, for the inputs (at most 8 slices) and for all
// of the cluster's rows. What is summed over groups meets in shared memory of
// the cluster: the squares of a norm and the logits of the router in every
// block, and the rows' partial sums, 32 rows ("a pair" of tiles) at a time, in
// block pair % 8. Always in the order of the groups. Warp w multiplies pairs w,
// w + 8, ...: four threads of a quad hold the planes of the same rows, and
// exchange them so that each lane ends with one row.
//
// Before it waits for the kernel before it, a block asks for everything that
// does not depend on it: signs, gate, in_scale, the norm's weights
// (asynchronous copies; a thread reads back the signs that it asked for
// itself), out_scale and bias.
//
// Bytes: in out / 8 (signs), 4 E in + 2 E out (gate, scales; in_scale and gate
// once per cluster, mostly from L2). 4096 x 4096 on an H200: 2.1 MB, 0.5 us; in
// flight while the kernel before still runs. Predicted with one launch waiting
// for another in a graph, 4096 x 4096, E = 4, in clocks: x from L2 600, router
// 250, sum over the cluster 400, softmax 300, planes 350, multiplication 250,
// sum over the cluster 400, store 100: 2,650, 1.4 us; and 0.6 us from one grid
// to the next. With launches of their own (no overlap) 1.4 us more. RmsNorm
// adds a sum over the cluster, 0.3 us predicted, and spares a launch of some 2;
// SwiGlu 100 clocks.
#pragma once

#include "engine/kernels/cuda/binary_mos_layout.h"
#include "engine/kernels/cuda/binary_mos_quantize.h"
#include "engine/kernels/cuda/canonical_math.h"

namespace binarymos::cuda {

inline constexpr int kMaxFusedTasks = 3;
inline constexpr int kMaxFusedSlices = 8;  // of a group
inline constexpr int kMaxFusedExperts = 8;
inline constexpr int kPairRows = 2 * kMmaRows;
// Of a cluster, so that a thread finishes at most one row.
inline constexpr int kMaxFusedPairs = 64;

// One layer of a launch.
struct FusedTask {
  int64_t out = 0;
  int experts = 1;
  bool accumulate = false;              // y += ... instead of y = ...
  const uint32_t* signs = nullptr;      // BinaryMosShape::sign_words()
  const uint16_t* gate = nullptr;       // [E, in] f16, or null: E = 1, g = 1
  const uint16_t* in_scale = nullptr;   // [E, in] f16
  const uint16_t* out_scale = nullptr;  // [E, out] f16
  const uint16_t* bias = nullptr;       // [out] f16 or null
  float* y = nullptr;                   // [out], not overlapping x
  float* gate_sums = nullptr;           // [E] or null: g is added

  constexpr int64_t num_pairs() const { return CeilDiv(out, kPairRows); }
};

struct FusedArgs {
  const float* x = nullptr;   // [in]
  const float* up = nullptr;  // [in] or null: silu(x) * up instead of x
  const uint16_t* norm =
      nullptr;       // [in] f16 or null: RmsNorm of x, so weighted
  float eps = 0.0f;  // of the norm
  int64_t in = 0;
  float qmax = 0.0f;
  int num_tasks = 0;
  FusedTask tasks[kMaxFusedTasks];
  // Set by PlanClusters().
  int pairs_per_cluster = 0;
  int clusters[kMaxFusedTasks] = {};  // per task

  constexpr int64_t num_slices() const { return CeilDiv(in, kSliceInputs); }
  constexpr int num_clusters() const {
    int sum = 0;
    for (int i = 0; i < num_tasks; ++i) sum += clusters[i];
    return sum;
  }
};

// Whether a layer is small enough. Host.
constexpr bool CanFuse(const BinaryMosShape& shape) {
  return shape.num_slices() <= kMaxFusedSlices * kSumGroups &&
         shape.experts <= kMaxFusedExperts;
}

// Shares `target` clusters, or as many more as it takes, among the tasks. Host.
inline void PlanClusters(int target, FusedArgs& args) {
  int64_t total = 0;
  for (int i = 0; i < args.num_tasks; ++i) total += args.tasks[i].num_pairs();
  const int wanted = target > args.num_tasks ? target : args.num_tasks;
  for (int64_t pairs = CeilDiv(total, wanted);; ++pairs) {
    if (pairs > kMaxFusedPairs) pairs = kMaxFusedPairs;
    args.pairs_per_cluster = static_cast<int>(pairs);
    for (int i = 0; i < args.num_tasks; ++i) {
      args.clusters[i] =
          static_cast<int>(CeilDiv(args.tasks[i].num_pairs(), pairs));
    }
    if (args.num_clusters() <= wanted || pairs == kMaxFusedPairs) return;
  }
}

// kPlanes: 8 or 16.
template <int kPlanes>
struct FusedBinaryMos {
  static constexpr int kThreads = 256;
  static constexpr int kClusterBlocks = kSumGroups;
  static constexpr int kWarps = kThreads / kWarp;
  static_assert(kWarps == kSliceWords && kWarps == kClusterBlocks);
  // Of a block, so that two fit on a multiprocessor of 228 KiB: the second is
  // of the next kernel. Signs that do not fit are only brought to L2 early.
  static constexpr size_t kMaxSharedBytes = 112 << 10;

  // Marks, in the order of the code.
  enum Stage {
    kBegun,
    kAsked,
    kWaited,
    kLoaded,
    kNormalized,
    kRouted,
    kQuantized,
    kSignsCame,
    kMultiplied,
    kFinished,
    kNumStages,
  };

  FusedArgs args;

  Grid grid() const {
    return {int64_t{args.num_clusters()} * kClusterBlocks, 1};
  }
  size_t shared_bytes() const {
    return OtherBytes() + NumCopied() * kFragmentBytes;
  }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    block.LaunchDependents();
    block.Mark(kBegun);
    const Part part = PartOf(block.x());
    const Shared shared = Layout(block.shared());
    block.ForEach([&](int thread) {
      if (thread == 0) OpenMailboxes(block, part, *shared.fixed);
    });
    block.ClusterArrive();
    block.ForEach([&](int thread) { CopyScales(block, thread, part, shared); });
    block.CommitCopies();
    block.ForEach([&](int thread) { CopySigns(block, thread, part, shared); });
    block.CommitCopies();
    block.ForEach([&](int thread) { LoadOutScale(thread, part, shared); });
    block.Mark(kAsked);

    block.WaitForPrevious();
    block.Mark(kWaited);
    block.ForEach([&](int thread) { LoadInputs(thread, part, shared); });
    block.template AwaitCopies<1>();
    block.Sync();
    block.ClusterWait();  // every block of the cluster has its mailboxes
    block.Mark(kLoaded);
    if (args.norm != nullptr) Normalize(block, part, shared);
    block.Mark(kNormalized);
    Route(block, part, shared);
    block.Mark(kRouted);
    Quantize(block, part, shared);
    block.Mark(kQuantized);
    block.template AwaitCopies<0>();
    block.Mark(kSignsCame);
    Multiply(block, part, shared);
    block.Mark(kMultiplied);
    block.ForEach([&](int thread) {
      if (FinishedRow(thread, part) < 0) return;
      block.AwaitMailbox(&shared.fixed->rows_box);
      Finish(thread, part, shared);
    });
    block.Mark(kFinished);
  }

 private:
  using Halves8 = Pack<uint16_t, 8>;
  // Of a slice's weights for one expert: items in a row are in other banks.
  static constexpr int kGateStride = kSliceInputs + 16;
  static constexpr int kFragments = kPlanes / kMmaColumns;
  static constexpr size_t kFragmentBytes = kWarp * sizeof(SignFragment);

  struct Fixed {
    // [plane][word]: planes are units of binary_mos_layout.h
    alignas(16) uint32_t planes[kMaxFusedSlices][16][kSliceWords];
    alignas(16) uint32_t max[kMaxFusedSlices][kWarps];  // of |u|, as bits
    alignas(16) int32_t sum[kMaxFusedSlices][kWarps];   // of q
    PreparedSlice slices[kMaxFusedSlices];
    // Written by all blocks of the cluster.
    uint64_t squares_box;
    uint64_t logits_box;
    uint64_t rows_box;
    alignas(16) float partial[kClusterBlocks][kThreads];
    float squares[kClusterBlocks];
    float logits[kClusterBlocks][kMaxFusedExperts];
    float slice_sums[kMaxFusedSlices * kMaxFusedExperts];
    float exps[kMaxFusedExperts];
    float gates[kMaxFusedExperts];
    uint16_t out_scale[kMaxFusedExperts][kThreads];
    uint16_t bias[kThreads];
  };
  struct Shared {
    Fixed* fixed;
    uint16_t* gate;       // [slice of the group][expert][kGateStride]
    uint16_t* in_scale;   // [slice of the group][expert][256]
    uint16_t* norm;       // [slice of the group][256], if there is one
    float* x;             // [slice of the group][256]
    SignFragment* signs;  // [fragment][lane]
  };
  // What a block does.
  struct Part {
    FusedTask task;
    int rank;    // in the cluster: the group
    bool first;  // of its task's blocks
    int first_slice;
    int slices;
    int64_t first_pair;
    int pairs;
  };

  constexpr int max_slices() const {
    return static_cast<int>(CeilDiv(args.num_slices(), kSumGroups));
  }
  constexpr int max_experts() const {
    int max = 1;
    for (int i = 0; i < args.num_tasks; ++i) {
      if (args.tasks[i].experts > max) max = args.tasks[i].experts;
    }
    return max;
  }
  constexpr size_t GateBytes() const {
    return static_cast<size_t>(max_slices()) * max_experts() * kGateStride *
           sizeof(uint16_t);
  }
  constexpr size_t InScaleBytes() const {
    return static_cast<size_t>(max_slices()) * max_experts() * kSliceInputs *
           sizeof(uint16_t);
  }
  constexpr size_t NormBytes() const {
    if (args.norm == nullptr) return 0;
    return static_cast<size_t>(max_slices()) * kSliceInputs * sizeof(uint16_t);
  }
  constexpr size_t InputBytes() const {
    return static_cast<size_t>(max_slices()) * kSliceInputs * sizeof(float);
  }
  constexpr size_t OtherBytes() const {
    return sizeof(Fixed) + GateBytes() + InScaleBytes() + NormBytes() +
           InputBytes();
  }
  // Fragments of the warps that are copied early.
  constexpr int NumCopied() const {
    const int all = args.pairs_per_cluster * max_slices() * 2;
    const auto most =
        static_cast<int>((kMaxSharedBytes - OtherBytes()) / kFragmentBytes);
    return all < most ? all : most;
  }
  // The number of fragment (slice, tile) of the warp's j-th pair.
  static BINARYMOS_DEVICE int FragmentIndex(int thread, const Part& part, int j,
                                            int slice, int tile) {
    return ((thread / kWarp + kWarps * j) * part.slices + slice) * 2 + tile;
  }

  BINARYMOS_DEVICE Shared Layout(void* memory) const {
    auto* bytes = static_cast<unsigned char*>(memory);
    Shared shared;
    shared.fixed = reinterpret_cast<Fixed*>(bytes);
    bytes += sizeof(Fixed);
    shared.gate = reinterpret_cast<uint16_t*>(bytes);
    bytes += GateBytes();
    shared.in_scale = reinterpret_cast<uint16_t*>(bytes);
    bytes += InScaleBytes();
    shared.norm = reinterpret_cast<uint16_t*>(bytes);
    bytes += NormBytes();
    shared.x = reinterpret_cast<float*>(bytes);
    bytes += InputBytes();
    shared.signs = reinterpret_cast<SignFragment*>(bytes);
    return shared;
  }

  BINARYMOS_DEVICE Part PartOf(int64_t block) const {
    Part part;
    part.rank = static_cast<int>(block % kClusterBlocks);
    auto cluster = static_cast<int>(block / kClusterBlocks);
    // Written out: arguments are not indexed at run time.
    part.task = args.tasks[0];
    BINARYMOS_UNROLL
    for (int i = 1; i < kMaxFusedTasks; ++i) {
      if (i >= args.num_tasks || cluster < args.clusters[i - 1]) break;
      cluster -= args.clusters[i - 1];
      part.task = args.tasks[i];
    }
    part.first = cluster == 0 && part.rank == 0;
    const int64_t num_slices = args.num_slices();
    part.first_slice = static_cast<int>(GroupBegin(part.rank, num_slices));
    part.slices = static_cast<int>(GroupBegin(part.rank + 1, num_slices)) -
                  part.first_slice;
    part.first_pair = int64_t{cluster} * args.pairs_per_cluster;
    const int64_t left = part.task.num_pairs() - part.first_pair;
    part.pairs = left < args.pairs_per_cluster ? static_cast<int>(left)
                                               : args.pairs_per_cluster;
    return part;
  }

  // --- Before the wait ------------------------------------------------------

  // What every block of the cluster will send: its squares, its logits, and its
  // part of the rows that this block finishes.
  template <typename Block>
  BINARYMOS_DEVICE void OpenMailboxes(Block& block, const Part& part,
                                      Fixed& fixed) const {
    constexpr int kFloats = kClusterBlocks * static_cast<int>(sizeof(float));
    const int pairs =
        (part.pairs - part.rank + kClusterBlocks - 1) / kClusterBlocks;
    block.OpenMailbox(&fixed.squares_box, kFloats);
    block.OpenMailbox(&fixed.logits_box, kFloats * part.task.experts);
    block.OpenMailbox(&fixed.rows_box, kFloats * kPairRows * pairs);
  }

  // gate, in_scale and norm of the group, zeros where there is no input.
  template <typename Block>
  BINARYMOS_DEVICE void CopyScales(Block& block, int thread, const Part& part,
                                   const Shared& shared) const {
    constexpr int kPacks = kSliceInputs / 8;  // of an item
    const int items = part.slices * part.task.experts;
    for (int i = thread; i < items * kPacks; i += kThreads) {
      const int item = i / kPacks;
      const int expert = item % part.task.experts;
      const int in_slice = i % kPacks * 8;
      const int64_t k =
          int64_t{part.first_slice + item / part.task.experts} * kSliceInputs +
          in_slice;
      uint16_t* gate = shared.gate + item * kGateStride + in_slice;
      uint16_t* in_scale = shared.in_scale + item * kSliceInputs + in_slice;
      const int64_t from = expert * args.in + k;
      if (k < args.in) {
        block.CopyAsync(in_scale, part.task.in_scale + from);
        if (part.task.gate != nullptr) {
          block.CopyAsync(gate, part.task.gate + from);
        }
      } else {
        *reinterpret_cast<Halves8*>(in_scale) = {};
        *reinterpret_cast<Halves8*>(gate) = {};
      }
    }
    if (args.norm == nullptr) return;
    for (int i = 8 * thread; i < part.slices * kSliceInputs;
         i += 8 * kThreads) {
      const int64_t k = int64_t{part.first_slice} * kSliceInputs + i;
      if (k < args.in) {
        block.CopyAsync(shared.norm + i, args.norm + k);
      } else {
        *reinterpret_cast<Halves8*>(shared.norm + i) = {};
      }
    }
  }

  // Where fragment (slice, tile) of the warp's j-th pair begins.
  BINARYMOS_DEVICE const uint32_t* Signs(int thread, const Part& part, int j,
                                         int slice, int tile) const {
    const int64_t pair = part.first_pair + thread / kWarp + kWarps * j;
    const int64_t unit =
        (2 * pair + tile) * args.num_slices() + part.first_slice + slice;
    return part.task.signs + unit * kTileWords + thread % kWarp * 4;
  }

  template <typename Block>
  BINARYMOS_DEVICE void CopySigns(Block& block, int thread, const Part& part,
                                  const Shared& shared) const {
    const int copied = NumCopied();
    for (int j = 0; thread / kWarp + kWarps * j < part.pairs; ++j) {
      for (int slice = 0; slice < part.slices; ++slice) {
        BINARYMOS_UNROLL
        for (int tile = 0; tile < 2; ++tile) {
          const int i = FragmentIndex(thread, part, j, slice, tile);
          const uint32_t* from = Signs(thread, part, j, slice, tile);
          if (i < copied) {
            block.CopyAsyncOnce(shared.signs + i * kWarp + thread % kWarp,
                                from);
          } else {
            block.PrefetchL2(from);
          }
        }
      }
    }
  }

  // The row that a thread finishes, or -1.
  BINARYMOS_DEVICE int64_t FinishedRow(int thread, const Part& part) const {
    const int pair = part.rank + kClusterBlocks * (thread / kPairRows);
    const int64_t row =
        (part.first_pair + pair) * kPairRows + thread % kPairRows;
    return pair < part.pairs && row < part.task.out ? row : -1;
  }

  BINARYMOS_DEVICE void LoadOutScale(int thread, const Part& part,
                                     const Shared& shared) const {
    const int64_t row = FinishedRow(thread, part);
    if (row < 0) return;
    // All loads before the first store: they wait for memory together.
    uint16_t scale[kMaxFusedExperts];
    BINARYMOS_UNROLL
    for (int e = 0; e < kMaxFusedExperts; ++e) {
      scale[e] = e < part.task.experts
                     ? part.task.out_scale[e * part.task.out + row]
                     : uint16_t{0};
    }
    const uint16_t bias =
        part.task.bias != nullptr ? part.task.bias[row] : uint16_t{0};
    BINARYMOS_UNROLL
    for (int e = 0; e < kMaxFusedExperts; ++e) {
      shared.fixed->out_scale[e][thread] = scale[e];
    }
    shared.fixed->bias[thread] = bias;
  }

  // --- After it -------------------------------------------------------------

  BINARYMOS_DEVICE void LoadInputs(int thread, const Part& part,
                                   const Shared& shared) const {
    const int64_t first = int64_t{part.first_slice} * kSliceInputs;
    for (int i = 4 * thread; i < part.slices * kSliceInputs;
         i += 4 * kThreads) {
      Floats4 x = {};
      if (first + i < args.in) {
        x = LoadPack<Floats4>(args.x + first + i);
        if (args.up != nullptr) {
          const Floats4 up = LoadPack<Floats4>(args.up + first + i);
          BINARYMOS_UNROLL
          for (int n = 0; n < 4; ++n) x.v[n] = Silu(x.v[n]) * up.v[n];
        }
      }
      *reinterpret_cast<Floats4*>(shared.x + i) = x;
    }
  }

  // shared.x = RmsNorm of it.
  template <typename Block>
  BINARYMOS_DEVICE void Normalize(Block& block, const Part& part,
                                  const Shared& shared) const {
    Fixed& fixed = *shared.fixed;
    AddSlices(block, part.slices, shared, [&](int item, int k) {
      const Floats4 x = LoadPack<Floats4>(shared.x + item * kSliceInputs + k);
      return Factors{x, x};
    });
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread >= kClusterBlocks) return;
      float sum = 0.0f;
      for (int s = 0; s < part.slices; ++s) sum += fixed.slice_sums[s];
      block.SendToRank(&fixed.squares[part.rank], thread, sum,
                       &fixed.squares_box);
    });
    block.ForEach([&](int thread) {
      block.AwaitMailbox(&fixed.squares_box);
      float sum = 0.0f;
      BINARYMOS_UNROLL
      for (int r = 0; r < kClusterBlocks; ++r) sum += fixed.squares[r];
      const float mean = sum / static_cast<float>(args.in);
      const float scale = 1.0f / Sqrt(mean + args.eps);
      for (int i = thread; i < part.slices * kSliceInputs; i += kThreads) {
        shared.x[i] = shared.x[i] * scale * ToFloat(shared.norm[i]);
      }
    });
    block.Sync();
  }

  // fixed.gates, for threads past the next Sync().
  template <typename Block>
  BINARYMOS_DEVICE void Route(Block& block, const Part& part,
                              const Shared& shared) const {
    Fixed& fixed = *shared.fixed;
    const int experts = part.task.experts;
    if (part.task.gate == nullptr) {
      block.ForEach([&](int thread) {
        if (thread == 0) fixed.gates[0] = 1.0f;
      });
      block.Sync();
      return;
    }
    AddSlices(block, part.slices * experts, shared, [&](int item, int k) {
      return Factors{
          LoadPack<Floats4>(shared.x + item / experts * kSliceInputs + k),
          ToFloats(LoadPack<Halves4>(shared.gate + item * kGateStride + k))};
    });
    block.Sync();
    // Thread (rank, expert) adds the group and gives it to that block.
    block.ForEach([&](int thread) {
      const int expert = thread % kMaxFusedExperts;
      if (thread >= kClusterBlocks * kMaxFusedExperts || expert >= experts) {
        return;
      }
      float sum = 0.0f;
      for (int s = 0; s < part.slices; ++s) {
        sum += fixed.slice_sums[s * experts + expert];
      }
      block.SendToRank(&fixed.logits[part.rank][expert],
                       thread / kMaxFusedExperts, sum, &fixed.logits_box);
    });
    block.ForEach([&](int thread) {
      if (thread >= experts) return;
      block.AwaitMailbox(&fixed.logits_box);
      float own = 0.0f;
      float max = 0.0f;
      for (int e = 0; e < experts; ++e) {
        float logit = 0.0f;
        BINARYMOS_UNROLL
        for (int r = 0; r < kClusterBlocks; ++r) logit += fixed.logits[r][e];
        max = e == 0 ? logit : Larger(logit, max);
        if (e == thread) own = logit;
      }
      fixed.exps[thread] = Exp(own - max);
    });
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread >= experts) return;
      float sum = 0.0f;
      for (int e = 0; e < experts; ++e) sum += fixed.exps[e];
      const float g = fixed.exps[thread] / sum;
      fixed.gates[thread] = g;
      if (part.first && part.task.gate_sums != nullptr) {
        part.task.gate_sums[thread] += g;
      }
    });
    block.Sync();
  }

  using Factors = GroupedSums<1>::Factors;

  static BINARYMOS_DEVICE Floats4 ToFloats(const Halves4& halves) {
    Floats4 floats;
    BINARYMOS_UNROLL
    for (int i = 0; i < 4; ++i) floats.v[i] = ToFloat(halves.v[i]);
    return floats;
  }

  // fixed.slice_sums[item], a quad each: the sum of the products of a slice.
  // load(item, k): the Factors of its inputs k to k + 3.
  template <typename Block, typename Load>
  BINARYMOS_DEVICE void AddSlices(Block& block, int items, const Shared& shared,
                                  Load load) const {
    static_assert(kMaxFusedSlices * kMaxFusedExperts <= kThreads / 4);
    typename Block::template PerThread<Floats4> lanes;
    typename Block::template PerThread<float> sum;
    block.ForEach([&](int thread) {
      const int item = thread / 4;
      Floats4 four = {};
      if (item < items) {
        BINARYMOS_UNROLL
        for (int k = 0; k < kSliceInputs; k += kSumLanes) {
          const Factors factors = load(item, thread % 4 * 4 + k);
          BINARYMOS_UNROLL
          for (int i = 0; i < 4; ++i) {
            four.v[i] = Fma(factors.a.v[i], factors.b.v[i], four.v[i]);
          }
        }
      }
      lanes[thread] = four;
    });
    ReduceAddInQuads(block, lanes, sum);
    block.ForEach([&](int thread) {
      const int item = thread / 4;
      if (thread % 4 == 0 && item < items) {
        shared.fixed->slice_sums[item] = sum[thread];
      }
    });
  }

  // fixed.planes, fixed.slices. Thread i has input i of every slice. Loops are
  // not unrolled, here and below: code that runs once waits for its own
  // instructions.
  template <typename Block>
  BINARYMOS_DEVICE void Quantize(Block& block, const Part& part,
                                 const Shared& shared) const {
    Fixed& fixed = *shared.fixed;
    BINARYMOS_NO_UNROLL
    for (int s = 0; s < part.slices; ++s) {
      typename Block::template PerThread<uint32_t> max;
      block.ForEach([&](int thread) {
        float scale = 0.0f;
        BINARYMOS_UNROLL_BY_4
        for (int e = 0; e < part.task.experts; ++e) {
          const int item = s * part.task.experts + e;
          scale = Fma(fixed.gates[e],
                      ToFloat(shared.in_scale[item * kSliceInputs + thread]),
                      scale);
        }
        float& u = shared.x[s * kSliceInputs + thread];
        u *= scale;
        max[thread] = FloatBits(u) & 0x7fffffffu;
      });
      max = block.WarpMax(max);
      block.ForEach([&](int thread) {
        if (thread % kWarp == 0) fixed.max[s][thread / kWarp] = max[thread];
      });
    }
    block.Sync();
    // Two slices of 16 bits at a time.
    BINARYMOS_NO_UNROLL
    for (int s = 0; s < part.slices; s += 2) {
      typename Block::template PerThread<uint32_t> bits;
      block.ForEach([&](int thread) { bits[thread] = 0; });
      BINARYMOS_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (s + i >= part.slices) break;
        typename Block::template PerThread<int32_t> sum;
        block.ForEach([&](int thread) {
          const uint32_t max = SliceMax(fixed, s + i);
          const int32_t q =
              IsNormalMax(max)
                  ? RoundToInt(shared.x[(s + i) * kSliceInputs + thread] *
                               (args.qmax / BitsFloat(max)))
                  : 0;
          sum[thread] = q;
          bits[thread] |= (static_cast<uint32_t>(q) & 0xffffu) << (16 * i);
        });
        sum = block.WarpSum(sum);
        block.ForEach([&](int thread) {
          if (thread % kWarp == 0) {
            fixed.sum[s + i][thread / kWarp] = sum[thread];
          }
        });
      }
      TransposeInWarps(block, bits);
      block.ForEach([&](int thread) {
        const int lane = thread % kWarp;
        fixed.planes[s + lane / 16][lane % 16][thread / kWarp] = bits[thread];
      });
    }
    block.Sync();
    block.ForEach([&](int thread) {
      if (thread >= part.slices) return;
      int32_t sum = 0;
      BINARYMOS_UNROLL
      for (int w = 0; w < kWarps; ++w) sum += fixed.sum[thread][w];
      fixed.slices[thread] = {SliceScale(SliceMax(fixed, thread), args.qmax),
                              sum};
    });
    block.Sync();
  }

  // The largest of the warps' maxima.
  static BINARYMOS_DEVICE uint32_t SliceMax(const Fixed& fixed, int slice) {
    uint32_t max = 0;
    BINARYMOS_UNROLL
    for (int w = 0; w < kWarps; w += 4) {
      const Words4 four = LoadPack<Words4>(fixed.max[slice] + w);
      BINARYMOS_UNROLL
      for (int i = 0; i < 4; ++i) max = four.v[i] > max ? four.v[i] : max;
    }
    return max;
  }

  // The group's part of the cluster's rows, to the block that finishes them.
  template <typename Block>
  BINARYMOS_DEVICE void Multiply(Block& block, const Part& part,
                                 const Shared& shared) const {
    const Fixed& fixed = *shared.fixed;
    const int copied = NumCopied();
    const int rounds =
        static_cast<int>(CeilDiv(args.pairs_per_cluster, kWarps));
    BINARYMOS_NO_UNROLL
    for (int j = 0; j < rounds; ++j) {
      typename Block::template PerThread<float> total;
      block.ForEach([&](int thread) { total[thread] = 0.0f; });
      BINARYMOS_UNROLL_BY_2
      for (int s = 0; s < part.slices; ++s) {
        typename Block::template PerThread<Counts> counts;
        BINARYMOS_UNROLL
        for (int tile = 0; tile < 2; ++tile) {
          typename Block::template PerThread<SignFragment> a;
          block.ForEach([&](int thread) {
            const int i = FragmentIndex(thread, part, j, s, tile);
            a[thread] = {};
            if (thread / kWarp + kWarps * j >= part.pairs) return;
            a[thread] =
                i < copied
                    ? shared.signs[i * kWarp + thread % kWarp]
                    : LoadPack<SignFragment>(Signs(thread, part, j, s, tile));
          });
          BINARYMOS_UNROLL
          for (int f = 0; f < kFragments; ++f) {
            CountPlanes(block, fixed, s, f, tile, a, counts);
          }
        }
        typename Block::template PerThread<int32_t> count;
        AddOverQuad(block, counts, count);
        block.ForEach([&](int thread) {
          const PreparedSlice slice = fixed.slices[s];
          const int32_t sum = 2 * count[thread] - slice.sum;
          total[thread] =
              Fma(static_cast<float>(sum), slice.scale, total[thread]);
        });
      }
      block.ForEach([&](int thread) {
        const int warp = thread / kWarp;
        if (warp + kWarps * j >= part.pairs) return;
        const int row = thread % 4 * 8 + thread % kWarp / 4;  // of the pair
        Fixed& other = *shared.fixed;
        block.SendToRank(&other.partial[part.rank][j * kPairRows + row], warp,
                         total[thread], &other.rows_box);
      });
    }
  }

  // Of a pair of tiles: [tile][row g or g + 8].
  struct Counts {
    int32_t v[2][2];
  };

  // counts = or += coefficients · popc(signs & planes) of one fragment.
  template <typename Block>
  BINARYMOS_DEVICE void CountPlanes(
      Block& block, const Fixed& fixed, int slice, int f, int tile,
      typename Block::template PerThread<SignFragment>& a,
      typename Block::template PerThread<Counts>& counts) const {
    typename Block::template PerThread<PlaneFragment> b;
    typename Block::template PerThread<CountFragment> c;
    block.ForEach([&](int thread) {
      const int column = f * kMmaColumns + thread % kWarp / 4;
      b[thread] =
          LoadPack<PlaneFragment>(fixed.planes[slice][column] + thread % 4 * 2);
      c[thread] = {};
    });
    block.BinaryMma(c, a, b);
    block.ForEach([&](int thread) {
      const int plane = f * kMmaColumns + thread % 4 * 2;
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        const int32_t value =
            c[thread].v[2 * row] * PlaneCoefficient(plane, kPlanes) +
            c[thread].v[2 * row + 1] * PlaneCoefficient(plane + 1, kPlanes);
        int32_t& count = counts[thread].v[tile][row];
        count = f == 0 ? value : count + value;
      }
    });
  }

  // Sums over a quad: thread t gets those of tile t / 2, row g + 8 (t % 2).
  template <typename Block>
  BINARYMOS_DEVICE void AddOverQuad(
      Block& block, typename Block::template PerThread<Counts>& counts,
      typename Block::template PerThread<int32_t>& sum) const {
    struct Two {
      int32_t v[2];
    };
    typename Block::template PerThread<Two> kept;
    typename Block::template PerThread<Two> sent;
    block.ForEach([&](int thread) {
      const bool second = thread % 4 / 2 != 0;
      BINARYMOS_UNROLL
      for (int row = 0; row < 2; ++row) {
        const int32_t a = counts[thread].v[0][row];
        const int32_t b = counts[thread].v[1][row];
        kept[thread].v[row] = second ? b : a;
        sent[thread].v[row] = second ? a : b;
      }
    });
    typename Block::template PerThread<Two> got = block.ShuffleXor(sent, 2);
    typename Block::template PerThread<int32_t> sent_row;
    block.ForEach([&](int thread) {
      const int32_t a = kept[thread].v[0] + got[thread].v[0];
      const int32_t b = kept[thread].v[1] + got[thread].v[1];
      sum[thread] = thread % 2 == 0 ? a : b;
      sent_row[thread] = thread % 2 == 0 ? b : a;
    });
    typename Block::template PerThread<int32_t> got_row =
        block.ShuffleXor(sent_row, 1);
    block.ForEach([&](int thread) { sum[thread] += got_row[thread]; });
  }

  // Adds the groups and writes one output.
  BINARYMOS_DEVICE void Finish(int thread, const Part& part,
                               const Shared& shared) const {
    const int64_t row = FinishedRow(thread, part);
    if (row < 0) return;
    const Fixed& fixed = *shared.fixed;
    float total = 0.0f;
    BINARYMOS_UNROLL
    for (int r = 0; r < kClusterBlocks; ++r) total += fixed.partial[r][thread];
    float scale = 0.0f;
    for (int e = 0; e < part.task.experts; ++e) {
      scale = Fma(fixed.gates[e], ToFloat(fixed.out_scale[e][thread]), scale);
    }
    const float value = part.task.bias == nullptr
                            ? total * scale
                            : Fma(total, scale, ToFloat(fixed.bias[thread]));
    float& y = part.task.y[row];
    y = part.task.accumulate ? y + value : value;
  }
};

}  // namespace binarymos::cuda
