// A small random model on a backend, for tests that look at logits.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/types.h"
#include "engine/backend/backend_factory.h"
#include "engine/batch_input.h"
#include "engine/kv_cache.h"
#include "engine/model/llama.h"
#include "engine/synthesize.h"

namespace binarymos {

struct TestModelOptions {
  std::string model_dir;  // empty: synthesized of shape and seed
  SyntheticShape shape;
  uint64_t seed = 1;
  BackendOptions backend{.device = "cpu", .num_threads = 2};
  // If set, stands between the model and the backend.
  std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)> wrap;
  int max_model_len = 512;
  int max_tokens = 512;
  int max_logit_rows = 64;
  int num_blocks = 512;
  bool kv_f32 = false;
};

// Two layers, two slices of inputs and more, grouped-query attention.
SyntheticShape SmallShape();

// A synthesized model directory that disappears with it.
class TestModelDir {
 public:
  TestModelDir(const SyntheticShape& shape, uint64_t seed);
  ~TestModelDir();
  TestModelDir(const TestModelDir&) = delete;
  TestModelDir& operator=(const TestModelDir&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Tokens with a place in the cache.
struct TestSequence {
  std::vector<TokenId> tokens;
  std::vector<BlockId> blocks;

  int size() const { return static_cast<int>(tokens.size()); }
};

// Positions [begin, end) of a sequence, computed in one step.
struct TestChunk {
  const TestSequence* sequence = nullptr;
  int begin = 0;
  int end = 0;
};

using Logits = std::vector<float>;  // [positions, vocab]

class TestModel {
 public:
  // Fails only where the backend is not available.
  static absl::StatusOr<std::unique_ptr<TestModel>> Load(
      const TestModelOptions& options);

  Backend& backend() { return *backend_; }
  LlamaModel& model() { return *model_; }
  KvCache& kv_cache() { return *kv_cache_; }
  int vocab_size() const { return model_->config().vocab_size; }

  // Random tokens, and blocks that are neither in order nor in use. `capacity`
  // is the number of positions that blocks are taken for.
  TestSequence NewSequence(int num_tokens, uint32_t seed, int capacity = 0);
  void FreeBlocks(const TestSequence& sequence);

  // Computes one step; the logits of every position of every chunk.
  std::vector<Logits> Forward(const std::vector<TestChunk>& chunks);
  // The whole sequence alone, `chunk_size` positions at a time.
  Logits ForwardInChunks(const TestSequence& sequence, int chunk_size);

 private:
  TestModel() = default;

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<LlamaModel> model_;
  std::unique_ptr<KvCache> kv_cache_;
  std::unique_ptr<BatchInput> input_;
  std::vector<BlockId> free_blocks_;
};

// Whether two matrices of logits have the same bits; if not, the first row that
// differs is named.
::testing::AssertionResult SameBits(const Logits& a, const Logits& b,
                                    int vocab_size);

}  // namespace binarymos
