// Everything a model needs from a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/backend/batch_view.h"
#include "engine/backend/device_sampler.h"
#include "engine/backend/linear_tensors.h"
#include "engine/core/tensor.h"

namespace binarymos {

// A linear layer's weights in the layout that the backend's kernels want.
// Created by Backend::Pack; usable with that backend only.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;

  LinearKind kind() const { return kind_; }
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  int num_experts() const { return num_experts_; }  // 0 without a router

  // Device memory held, padding and tables included.
  virtual size_t bytes() const = 0;

 protected:
  PackedLinear(LinearKind kind, int64_t in_features, int64_t out_features,
               int num_experts)
      : kind_(kind),
        in_features_(in_features),
        out_features_(out_features),
        num_experts_(num_experts) {}

 private:
  LinearKind kind_;
  int64_t in_features_;
  int64_t out_features_;
  int num_experts_;
};

// The KV cache of one layer, paged. Element (block, head, offset, d) holds the
// rotated key / the value of the position that a block table maps there.
struct KvLayer {
  TensorView keys;    // [num_blocks, num_kv_heads, kBlockSize, head_dim]
  TensorView values;  // same; f16, or f32 for comparisons
};

// cos and sin of the rotation angles, fixed at load.
struct RopeTable {
  ConstTensorView cos;  // [max_model_len, head_dim / 2] f32
  ConstTensorView sin;  // same
};

// Shape of the attention of a model.
struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;  // divides num_heads
  int head_dim = 0;
};

// What a recording of operations belongs to: see Backend::Repeat.
struct RepeatKey {
  const void* owner = nullptr;  // of the memory that the operations name
  const void* cache = nullptr;  // the KV cache, if there are several
  int variant = 0;
  friend bool operator==(const RepeatKey&, const RepeatKey&) = default;
};

// A device with its kernels and memory. Owned by the Engine; after loading,
// confined to the serving-loop thread. Activations are f32. Operations are
// enqueued in order and may return before they ran; views must stay valid until
// the step has been waited for. Arithmetic is the canonical one (DESIGN section
// 6): a row's result does not depend on the other rows, on threads or on
// tiling.
//
// Loading can fail for want of memory and says so. An operation can fail only
// with the device; such errors surface where a step is waited for, at the
// latest, and are final.
class Backend {
 public:
  virtual ~Backend() = default;

  // For people: "cpu (avx2, 2 threads)".
  virtual std::string description() const = 0;
  // Why it is not the backend that somebody might expect; empty as a rule.
  const std::string& note() const { return note_; }
  void set_note(std::string note) { note_ = std::move(note); }

  // Whether Pack takes such layers.
  virtual bool Supports(LinearKind kind) const {
    return kind != LinearKind::kInt8;
  }

  // --- Memory --------------------------------------------------------------

  // Zeroed device memory. RESOURCE_EXHAUSTED if there is none.
  virtual absl::StatusOr<Tensor> Allocate(DType dtype, Shape shape) = 0;
  // A copy on the device of a host tensor.
  virtual absl::StatusOr<Tensor> Upload(const ConstTensorView& host) = 0;
  // Repacks a linear layer; `tensors` is not needed afterwards. UNIMPLEMENTED
  // for a kind that is not supported.
  virtual absl::StatusOr<std::unique_ptr<PackedLinear>> Pack(
      const LinearTensors& tensors) = 0;
  // Bytes that can still be allocated: free device memory, or what the host
  // (its cgroup) leaves to this process.
  virtual absl::StatusOr<size_t> AvailableMemory() const = 0;
  // Sizes the workspaces so that no step of this size allocates.
  virtual absl::Status Reserve(int max_tokens, int max_logit_rows) = 0;

  // --- One step ------------------------------------------------------------

  // Steps that may have been submitted and not been waited for: 1, or 2 where
  // the host can prepare a step while the device computes the one before.
  virtual int max_steps_in_flight() const { return 1; }

  // Starts a step; `batch` is valid until SubmitStep. REQUIRES: fewer than
  // max_steps_in_flight() steps in flight.
  virtual void BeginStep(const BatchView& batch) = 0;
  // Ends the step. Where 2 steps may be in flight it waits for nothing, and
  // neither do operations, but for those that say so.
  virtual void SubmitStep() { submitted_ = EndStep(); }
  // Waits until every operation of the oldest step in flight has run, and for
  // nothing behind it. UNAVAILABLE or INTERNAL if the device failed. REQUIRES:
  // a step is in flight.
  virtual absl::Status AwaitStep() { return submitted_; }
  // SubmitStep, then AwaitStep. REQUIRES: no other step in flight.
  virtual absl::Status EndStep() = 0;
  // Seconds by the device's clock of the last step that EndStep ended, from its
  // first copy to its last operation. 0 where the host computes, or unless the
  // backend was created to time its steps.
  virtual double device_seconds() const { return 0; }
  // Copies f32 from the device; may be called between BeginStep and EndStep and
  // waits for the operations that write `tensor`.
  virtual absl::Status ReadBack(const ConstTensorView& tensor,
                                std::span<float> host) = 0;
  // The same, except that it may return before; `host` holds the elements after
  // AwaitStep of this step. Once per step.
  virtual absl::Status ReadLater(const ConstTensorView& tensor,
                                 std::span<float> host) {
    return ReadBack(tensor, host);
  }
  // Of each row: the smallest index of its largest element, or -1 if the row
  // holds NaN or Inf. Waits as ReadBack does, and fails as it does.
  // x: [rows, width] f32; ids: [rows] on the host.
  virtual absl::Status ArgMax(const ConstTensorView& x,
                              std::span<int32_t> ids) = 0;
  // Chooses tokens where the logits are. Null where the host does, from logits
  // that it reads back. The same one for the backend's lifetime.
  virtual DeviceSampler* sampler() { return nullptr; }
  // Sets every byte to zero.
  virtual void Zero(const TensorView& tensor) = 0;

  // Runs `operations`, which enqueues operations of this step and does nothing
  // else that matters: a device may record them and, in a later step with an
  // equal key and a batch of the same shape, replay the recording instead of
  // calling `operations`. REQUIRES: with equal keys and as many tokens and
  // logit rows, the operations and the memory that they name are the same.
  virtual void Repeat(const RepeatKey& /*key*/,
                      absl::FunctionRef<void()> operations) {
    operations();
  }

  // out[t] = table[batch.tokens[t]], table [vocab, hidden] a Float16 linear.
  // out: [num_tokens, hidden] f32.
  virtual void Embed(const PackedLinear& table, const TensorView& out) = 0;

  // out = x / sqrt(mean(x²) + eps) ⊙ weight, per row.
  // x, out: [rows, hidden] f32 (may be the same); weight: [hidden] f16.
  virtual void RmsNorm(const ConstTensorView& x, const ConstTensorView& weight,
                       float eps, const TensorView& out) = 0;

  enum class Output { kStore, kAccumulate };  // y = ..., y += ...
  // y = linear(x). x: [rows, in] f32; y: [rows, out] f32, not overlapping x.
  // If `gate_sums` is present, the gates are added to it, summed over rows:
  // [num_experts] f32.
  virtual void Linear(const PackedLinear& linear, const ConstTensorView& x,
                      Output output, const TensorView& y,
                      const TensorView& gate_sums) = 0;

  struct LinearTask {
    const PackedLinear* linear = nullptr;
    TensorView y;          // [rows, out] f32
    TensorView gate_sums;  // as of Linear
    Output output = Output::kStore;
  };
  // y = linear(x) for every task: linears that share an input, with the same
  // bits as one after the other. No y overlaps x or another y.
  virtual void Linears(std::span<const LinearTask> tasks,
                       const ConstTensorView& x) {
    for (const LinearTask& task : tasks) {
      Linear(*task.linear, x, task.output, task.y, task.gate_sums);
    }
  }

  // RmsNorm of x, then the linears of that, for which `normed` is scratch
  // memory: what it holds afterwards is not defined.
  // x, normed: [rows, in] f32; weight: [in] f16.
  virtual void RmsNormAndLinears(const ConstTensorView& x,
                                 const ConstTensorView& weight, float eps,
                                 const TensorView& normed,
                                 std::span<const LinearTask> tasks) {
    RmsNorm(x, weight, eps, normed);
    Linears(tasks, normed);
  }

  // Rotates q and k by their positions (pairs (d, d + head_dim / 2), as Hugging
  // Face lays LLaMA out) and writes k and v to the cache at batch.kv_slots.
  // q: [num_tokens, num_heads * head_dim] f32, in place;
  // k: [num_tokens, num_kv_heads * head_dim] f32, in place; v: same shape.
  virtual void RopeAndWriteKv(const AttentionShape& shape,
                              const RopeTable& rope, const TensorView& q,
                              const TensorView& k, const ConstTensorView& v,
                              const KvLayer& kv) = 0;

  // Causal attention of every query over its sequence's cached positions
  // [0, position]; scale 1 / sqrt(head_dim).
  // q, out: [num_tokens, num_heads * head_dim] f32.
  virtual void Attention(const AttentionShape& shape, const ConstTensorView& q,
                         const KvLayer& kv, const TensorView& out) = 0;

  // RopeAndWriteKv, then Attention, for which q and k are scratch memory: what
  // they hold afterwards is not defined.
  virtual void RopeAndAttention(const AttentionShape& shape,
                                const RopeTable& rope, const TensorView& q,
                                const TensorView& k, const ConstTensorView& v,
                                const KvLayer& kv, const TensorView& out) {
    RopeAndWriteKv(shape, rope, q, k, v, kv);
    Attention(shape, q, kv, out);
  }

  // out = gate / (1 + exp(-gate)) ⊙ up. All [rows, intermediate] f32; out may
  // be gate.
  virtual void SwiGlu(const ConstTensorView& gate, const ConstTensorView& up,
                      const TensorView& out) = 0;

  // SwiGlu, then Linear of that, for which `gate` is scratch memory: what it
  // holds afterwards is not defined.
  virtual void SwiGluAndLinear(const TensorView& gate,
                               const ConstTensorView& up,
                               const PackedLinear& linear, Output output,
                               const TensorView& y,
                               const TensorView& gate_sums) {
    SwiGlu(gate, up, gate);
    Linear(linear, gate, output, y, gate_sums);
  }

  // out[r] = x[batch.logit_rows[r]]. x: [num_tokens, hidden] f32;
  // out: [num_logit_rows, hidden] f32.
  virtual void GatherLogitRows(const ConstTensorView& x,
                               const TensorView& out) = 0;

 private:
  std::string note_;
  absl::Status submitted_;
};

}  // namespace binarymos
