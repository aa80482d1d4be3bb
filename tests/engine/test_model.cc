#include "tests/engine/test_model.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"
#include "engine/model/weights.h"

namespace binarymos {

SyntheticShape SmallShape() {
  SyntheticShape shape;
  shape.hidden_size = 320;
  shape.intermediate_size = 544;
  shape.num_layers = 2;
  shape.num_heads = 4;
  shape.num_kv_heads = 2;
  shape.head_dim = 16;
  shape.vocab_size = kMinSyntheticVocab;
  shape.max_position_embeddings = 512;
  return shape;
}

TestModelDir::TestModelDir(const SyntheticShape& shape, uint64_t seed) {
  static std::atomic<int> count{0};
  path_ = absl::StrCat(::testing::TempDir(), "/binarymos-test-model-", getpid(),
                       "-", count++);
  std::filesystem::remove_all(path_);
  const absl::Status status = SynthesizeModel(path_, shape, seed);
  BINARYMOS_CHECK(status.ok()) << status.ToString();
}

TestModelDir::~TestModelDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<std::unique_ptr<TestModel>> TestModel::Load(
    const TestModelOptions& options) {
  std::unique_ptr<TestModel> test(new TestModel);
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      CreateBackend(options.backend);
  if (!backend.ok()) return backend.status();
  test->backend_ = *std::move(backend);
  if (options.wrap) test->backend_ = options.wrap(std::move(test->backend_));

  std::optional<TestModelDir> synthetic;
  if (options.model_dir.empty()) {
    synthetic.emplace(options.shape, options.seed);
  }
  const std::string& dir =
      synthetic.has_value() ? synthetic->path() : options.model_dir;
  const auto config = LlamaConfig::Load(dir);
  BINARYMOS_CHECK(config.ok()) << config.status().ToString();
  const auto checkpoint = Checkpoint::Open(dir);
  BINARYMOS_CHECK(checkpoint.ok()) << checkpoint.status().ToString();
  auto weights = LlamaWeights::Load(*checkpoint, *config, *test->backend_);
  BINARYMOS_CHECK(weights.ok()) << weights.status().ToString();
  auto model = LlamaModel::Create(
      *config, *std::move(weights),
      {options.max_model_len, options.max_tokens, options.max_logit_rows},
      *test->backend_);
  BINARYMOS_CHECK(model.ok()) << model.status().ToString();
  test->model_ = *std::move(model);
  auto cache = KvCache::Allocate(
      *test->backend_,
      {config->num_layers, config->num_kv_heads, config->head_dim,
       options.kv_f32 ? DType::kF32 : DType::kF16},
      options.num_blocks);
  BINARYMOS_CHECK(cache.ok()) << cache.status().ToString();
  test->kv_cache_ = std::make_unique<KvCache>(*std::move(cache));
  test->input_ =
      std::make_unique<BatchInput>(options.max_tokens, 64, options.num_blocks);
  for (BlockId block = 0; block < options.num_blocks; ++block) {
    test->free_blocks_.push_back(block);
  }
  std::shuffle(test->free_blocks_.begin(), test->free_blocks_.end(),
               std::mt19937(7));
  return test;
}

TestSequence TestModel::NewSequence(int num_tokens, uint32_t seed,
                                    int capacity) {
  TestSequence sequence;
  std::mt19937 random(seed);
  for (int i = 0; i < num_tokens; ++i) {
    sequence.tokens.push_back(static_cast<TokenId>(random() % vocab_size()));
  }
  const int positions = std::max(num_tokens, capacity);
  for (int i = 0; i < positions; i += kBlockSize) {
    BINARYMOS_CHECK(!free_blocks_.empty());
    sequence.blocks.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
  return sequence;
}

void TestModel::FreeBlocks(const TestSequence& sequence) {
  free_blocks_.insert(free_blocks_.end(), sequence.blocks.begin(),
                      sequence.blocks.end());
}

std::vector<Logits> TestModel::Forward(const std::vector<TestChunk>& chunks) {
  BatchPlan plan;
  plan.step = 0;
  for (const TestChunk& chunk : chunks) {
    BatchRow row;
    row.slot = static_cast<SlotId>(plan.rows.size());
    row.tokens = std::span(chunk.sequence->tokens)
                     .subspan(chunk.begin, chunk.end - chunk.begin);
    row.first_position = chunk.begin;
    row.block_table = chunk.sequence->blocks;
    row.num_prompt_logprobs = 0;  // wants the logits of every token
    plan.rows.push_back(row);
    plan.num_tokens += chunk.end - chunk.begin;
  }
  const BatchView& batch = input_->Build(plan, SampledTokens(1));
  backend_->BeginStep(batch);
  model_->Forward(batch, kv_cache_->layers(), /*sum_gates=*/false, nullptr);
  const int num_rows = batch.num_logit_rows();
  Logits all(static_cast<size_t>(num_rows) * vocab_size());
  const int step = model_->limits().max_logit_rows;
  for (int begin = 0; begin < num_rows; begin += step) {
    const int end = std::min(num_rows, begin + step);
    const absl::Status status = backend_->ReadBack(
        model_->Logits(begin, end),
        std::span(all).subspan(
            static_cast<size_t>(begin) * vocab_size(),
            static_cast<size_t>(end - begin) * vocab_size()));
    BINARYMOS_CHECK(status.ok()) << status.ToString();
  }
  const absl::Status status = backend_->EndStep();
  BINARYMOS_CHECK(status.ok()) << status.ToString();

  std::vector<Logits> result;
  auto next = all.begin();
  for (const TestChunk& chunk : chunks) {
    const auto end =
        next + static_cast<ptrdiff_t>(chunk.end - chunk.begin) * vocab_size();
    result.emplace_back(next, end);
    next = end;
  }
  return result;
}

Logits TestModel::ForwardInChunks(const TestSequence& sequence,
                                  int chunk_size) {
  Logits logits;
  for (int begin = 0; begin < sequence.size(); begin += chunk_size) {
    const int end = std::min(sequence.size(), begin + chunk_size);
    const Logits part = Forward({{&sequence, begin, end}})[0];
    logits.insert(logits.end(), part.begin(), part.end());
  }
  return logits;
}

::testing::AssertionResult SameBits(const Logits& a, const Logits& b,
                                    int vocab_size) {
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure()
           << a.size() << " logits and " << b.size();
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) == 0) continue;
    return ::testing::AssertionFailure()
           << "position " << i / vocab_size << ", token " << i % vocab_size
           << ": " << a[i] << " and " << b[i];
  }
  return ::testing::AssertionSuccess();
}

}  // namespace binarymos
