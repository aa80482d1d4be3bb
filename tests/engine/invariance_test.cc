// DESIGN section 6: the logits of a request, bit for bit, do not depend on what
// else is in the batch, on chunking, on recomputing, on threads or on the
// instruction set.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

// Longer than one split of the attention (256 positions).
constexpr int kNumTokens = 283;
constexpr uint32_t kSubject = 5;

std::unique_ptr<TestModel> LoadOrDie(const TestModelOptions& options) {
  auto model = TestModel::Load(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

TestModelOptions OptionsFor(const std::string& quant_method) {
  TestModelOptions options;
  options.shape = SmallShape();
  options.shape.quant_method = quant_method;
  options.max_tokens = 1024;
  return options;
}

Logits Whole(TestModel& model) {
  const TestSequence subject = model.NewSequence(kNumTokens, kSubject);
  Logits logits = model.ForwardInChunks(subject, kNumTokens);
  model.FreeBlocks(subject);
  return logits;
}

// The subject in chunks of random size at a random place among 32 neighbours
// of random length, each of which is somewhere in its own prompt or takes one
// token at a time.
Logits AmongNeighbours(TestModel& model, uint32_t seed) {
  constexpr int kNumNeighbours = 32;
  std::mt19937 random(seed);
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  const TestSequence subject = model.NewSequence(kNumTokens, kSubject);
  std::vector<TestSequence> neighbours;
  std::vector<int> computed(kNumNeighbours, 0);
  for (int i = 0; i < kNumNeighbours; ++i) {
    neighbours.push_back(model.NewSequence(1 + below(120), random()));
  }

  Logits logits;
  for (int begin = 0; begin < kNumTokens;) {
    std::vector<TestChunk> chunks;
    for (int i = 0; i < kNumNeighbours; ++i) {
      const TestSequence& neighbour = neighbours[i];
      if (computed[i] == neighbour.size()) computed[i] = 0;
      const int left = neighbour.size() - computed[i];
      const int take = below(2) == 0 ? 1 : 1 + below(std::min(left, 20));
      chunks.push_back({&neighbour, computed[i], computed[i] + take});
      computed[i] += take;
    }
    std::shuffle(chunks.begin(), chunks.end(), random);
    const int take = std::min(1 + below(60), kNumTokens - begin);
    const int index = below(kNumNeighbours + 1);
    chunks.insert(chunks.begin() + index, {&subject, begin, begin + take});
    const Logits part = model.Forward(chunks)[index];
    logits.insert(logits.end(), part.begin(), part.end());
    begin += take;
  }
  model.FreeBlocks(subject);
  for (const TestSequence& neighbour : neighbours) model.FreeBlocks(neighbour);
  return logits;
}

class InvarianceTest : public ::testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Methods, InvarianceTest,
                         ::testing::Values("binarymos", "float16"),
                         [](const auto& test) { return test.param; });

TEST_P(InvarianceTest, ChunkSizesGiveTheSameLogits) {
  const auto model = LoadOrDie(OptionsFor(GetParam()));
  const Logits whole = Whole(*model);
  ASSERT_EQ(whole.size(),
            static_cast<size_t>(kNumTokens) * model->vocab_size());
  for (int chunk_size : {1, 7, 16, 64}) {
    SCOPED_TRACE(chunk_size);
    const TestSequence subject = model->NewSequence(kNumTokens, kSubject);
    EXPECT_TRUE(SameBits(model->ForwardInChunks(subject, chunk_size), whole,
                         model->vocab_size()));
    model->FreeBlocks(subject);
  }
}

TEST_P(InvarianceTest, NeighboursDoNotChangeLogits) {
  const auto model = LoadOrDie(OptionsFor(GetParam()));
  const Logits whole = Whole(*model);
  for (uint32_t seed : {1, 2}) {
    EXPECT_TRUE(
        SameBits(AmongNeighbours(*model, seed), whole, model->vocab_size()));
  }
}

// One token of each of 1 to 64 sequences, at other positions than the subject.
TEST_P(InvarianceTest, BatchSizesGiveTheSameLogits) {
  constexpr int kMaxBatch = 64;
  constexpr int kPositions = 20;
  const auto model = LoadOrDie(OptionsFor(GetParam()));
  const TestSequence subject = model->NewSequence(kPositions, kSubject);
  const Logits whole = model->ForwardInChunks(subject, kPositions);
  const Logits last(whole.end() - model->vocab_size(), whole.end());
  std::vector<TestSequence> neighbours;
  for (int i = 1; i < kMaxBatch; ++i) {
    neighbours.push_back(model->NewSequence(1 + i % 7, 100 + i));
    model->ForwardInChunks(neighbours.back(), neighbours.back().size());
  }
  for (int batch = 1; batch <= kMaxBatch; ++batch) {
    std::vector<TestChunk> chunks;
    for (int i = 0; i + 1 < batch; ++i) {
      const int size = neighbours[i].size();
      chunks.push_back({&neighbours[i], size - 1, size});
    }
    const int place = batch / 2;
    chunks.insert(chunks.begin() + place,
                  {&subject, kPositions - 1, kPositions});
    EXPECT_TRUE(
        SameBits(model->Forward(chunks)[place], last, model->vocab_size()))
        << batch;
  }
}

TEST_P(InvarianceTest, ThreadsDoNotChangeLogits) {
  TestModelOptions options = OptionsFor(GetParam());
  Logits expected;
  for (int num_threads = 1; num_threads <= 8; ++num_threads) {
    SCOPED_TRACE(num_threads);
    options.backend.num_threads = num_threads;
    const auto model = LoadOrDie(options);
    if (expected.empty()) expected = Whole(*model);
    EXPECT_TRUE(SameBits(Whole(*model), expected, model->vocab_size()));
    if (num_threads > 3 && num_threads < 8) continue;  // for the time it takes
    EXPECT_TRUE(
        SameBits(AmongNeighbours(*model, 3), expected, model->vocab_size()));
  }
}

TEST_P(InvarianceTest, InstructionSetsGiveTheSameLogits) {
  TestModelOptions options = OptionsFor(GetParam());
  if (GetParam() == "float16") {  // without FMA instructions, fma() is slow
    options.shape.hidden_size = 72;
    options.shape.intermediate_size = 136;
  }
  options.backend.cpu_kernels = "avx2";
  const auto avx2 = TestModel::Load(options);
  if (!avx2.ok()) GTEST_SKIP() << avx2.status();
  options.backend.cpu_kernels = "portable";
  const auto portable = LoadOrDie(options);
  const Logits expected = Whole(**avx2);
  EXPECT_TRUE(SameBits(Whole(*portable), expected, portable->vocab_size()));
  const TestSequence subject = portable->NewSequence(kNumTokens, kSubject);
  EXPECT_TRUE(SameBits(portable->ForwardInChunks(subject, 7), expected,
                       portable->vocab_size()));
}

// Preemption gives the blocks away and computes prompt and output again, in
// chunks and elsewhere.
TEST_P(InvarianceTest, RecomputingGivesTheSameLogits) {
  constexpr int kPrompt = 100;
  constexpr int kOutput = 30;
  const auto model = LoadOrDie(OptionsFor(GetParam()));
  const int vocab = model->vocab_size();
  TestSequence sequence =
      model->NewSequence(kPrompt, kSubject, kPrompt + kOutput);
  Logits logits = model->ForwardInChunks(sequence, 32);
  for (int i = 0; i < kOutput; ++i) {
    const auto best = std::max_element(logits.end() - vocab, logits.end());
    sequence.tokens.push_back(
        static_cast<TokenId>(best - (logits.end() - vocab)));
    const int size = sequence.size();
    const Logits next = model->Forward({{&sequence, size - 1, size}})[0];
    logits.insert(logits.end(), next.begin(), next.end());
  }
  TestSequence again = model->NewSequence(0, 0, sequence.size());
  model->FreeBlocks(sequence);
  again.tokens = sequence.tokens;
  EXPECT_TRUE(SameBits(model->ForwardInChunks(again, 48), logits, vocab));
}

}  // namespace
}  // namespace binarymos
