#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/plain_llama.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

constexpr int kWindow = 24;

class PerplexityTest : public ::testing::TestWithParam<const char*> {
 protected:
  PerplexityTest() : dir_(Shape(), 1) { engine_ = Load(64); }

  static SyntheticShape Shape() {
    SyntheticShape shape = SmallShape();
    shape.quant_method = GetParam();
    shape.max_position_embeddings = 64;
    return shape;
  }

  std::unique_ptr<Engine> Load(int max_tokens) {
    EngineOptions options;
    options.model_dir = dir_.path();
    options.max_num_seqs = 1;
    options.num_threads = 2;
    options.max_num_batched_tokens = max_tokens;
    auto engine = Engine::Load(options);
    BINARYMOS_CHECK(engine.ok()) << engine.status().ToString();
    return *std::move(engine);
  }

  static std::vector<TokenId> Tokens(int count) {
    std::mt19937 random(5);
    std::vector<TokenId> tokens;
    for (int i = 0; i < count; ++i) {
      tokens.push_back(static_cast<TokenId>(random() % kMinSyntheticVocab));
    }
    return tokens;
  }

  // In double, from the formula.
  double Expected(const std::vector<TokenId>& tokens) {
    double sum = 0;
    const int count = static_cast<int>(tokens.size()) / kWindow;
    for (int w = 0; w < count; ++w) {
      const auto begin = tokens.begin() + w * kWindow;
      const std::vector<TokenId> window(begin, begin + kWindow);
      const std::vector<double> logits =
          PlainLlamaLogits(dir_.path(), window, 64);
      double loss = 0;
      for (int t = 0; t + 1 < kWindow; ++t) {
        const auto row = logits.begin() + t * kMinSyntheticVocab;
        const auto end = row + kMinSyntheticVocab;
        const double largest = *std::max_element(row, end);
        double total = 0;
        for (auto it = row; it != end; ++it) total += std::exp(*it - largest);
        loss += largest + std::log(total) - row[window[t + 1]];
      }
      sum += loss / (kWindow - 1);
    }
    return std::exp(sum / count);
  }

  absl::StatusOr<PerplexityResult> Measure(const std::vector<TokenId>& tokens) {
    return MeasurePerplexity(*engine_, tokens, {.window = kWindow});
  }

  TestModelDir dir_;
  std::unique_ptr<Engine> engine_;
};

INSTANTIATE_TEST_SUITE_P(Models, PerplexityTest,
                         ::testing::Values("binarymos", "float16"));

TEST_P(PerplexityTest, IsThatOfTheFormula) {
  const std::vector<TokenId> tokens = Tokens(3 * kWindow + 7);
  const auto result = Measure(tokens);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->num_windows, 3);
  EXPECT_EQ(result->num_tokens, 3 * kWindow + 7);
  EXPECT_EQ(result->tokens_used, 3 * kWindow);
  const double expected = Expected(tokens);
  // Logits are good to about 1e-2 (reference_test); their errors average out.
  EXPECT_NEAR(result->perplexity, expected, 1e-3 * expected);
}

TEST_P(PerplexityTest, AWindowSeesNothingOfTheOneBefore) {
  const std::vector<TokenId> tokens = Tokens(2 * kWindow);
  const std::vector<TokenId> first(tokens.begin(), tokens.begin() + kWindow);
  const std::vector<TokenId> second(tokens.begin() + kWindow, tokens.end());
  EXPECT_NEAR(std::log(Measure(tokens)->perplexity),
              (std::log(Measure(first)->perplexity) +
               std::log(Measure(second)->perplexity)) /
                  2,
              1e-12);
}

TEST_P(PerplexityTest, DoesNotDependOnTheSizeOfTheSteps) {
  const std::vector<TokenId> tokens = Tokens(2 * kWindow);
  const double whole = Measure(tokens)->perplexity;
  engine_ = nullptr;
  engine_ = Load(7);
  EXPECT_EQ(Measure(tokens)->perplexity, whole);
}

TEST_P(PerplexityTest, ReportsEveryStep) {
  engine_ = nullptr;
  engine_ = Load(20);
  std::vector<int64_t> done;
  double last = 0;
  const auto result = MeasurePerplexity(
      *engine_, Tokens(2 * kWindow),
      {.window = kWindow, .on_progress = [&](const PerplexityProgress& p) {
         EXPECT_EQ(p.total_tokens, 2 * kWindow);
         done.push_back(p.tokens_done);
         last = p.perplexity;
       }});
  ASSERT_TRUE(result.ok());
  EXPECT_THAT(done, ::testing::ElementsAre(20, 24, 44, 48));
  EXPECT_EQ(last, result->perplexity);
}

TEST_P(PerplexityTest, OfATextBeginsWithOneBos) {
  const std::string text(200, 'a');
  const auto tokens = engine_->tokenizer().Encode(text, /*add_bos=*/true);
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ(tokens->front(), engine_->tokenizer().bos());
  const auto of_text = MeasurePerplexity(*engine_, text, {.window = kWindow});
  ASSERT_TRUE(of_text.ok()) << of_text.status();
  EXPECT_EQ(of_text->perplexity, Measure(*tokens)->perplexity);
}

TEST_P(PerplexityTest, TheWindowDefaultsToTheModelsPositions) {
  const auto result = MeasurePerplexity(*engine_, Tokens(70), {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->window, 64);
  EXPECT_EQ(result->num_windows, 1);
}

TEST_P(PerplexityTest, RefusesWhatCannotBeMeasured) {
  const auto message = [&](const std::vector<TokenId>& tokens, int window) {
    const absl::Status status =
        MeasurePerplexity(*engine_, tokens, {.window = window}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message(Tokens(kWindow - 1), kWindow),
              HasSubstr("do not fill one window"));
  EXPECT_THAT(message(Tokens(kWindow), 1), HasSubstr("--window is 1"));
  EXPECT_THAT(message(Tokens(kWindow), 65), HasSubstr("--window is 65"));
  EXPECT_THAT(message(Tokens(kWindow), -3), HasSubstr("--window is -3"));
  std::vector<TokenId> tokens = Tokens(kWindow);
  tokens[3] = kMinSyntheticVocab;
  EXPECT_THAT(message(tokens, kWindow), HasSubstr("not in the vocabulary"));
}

// Of the demonstration model on the beginning of a tale that it does not know.
// Short, for the reference takes its time.
class PerplexityOfTalesTest : public ::testing::Test {
 protected:
  static double Measure(const std::string& kernels, const std::string& head) {
    constexpr int kTokens = 20;
    EngineOptions options;
    options.model_dir = BINARYMOS_TALES;
    options.device = "cpu";
    options.cpu_kernels = kernels;
    options.lm_head = head;
    options.max_num_seqs = 1;
    options.max_num_batched_tokens = kTokens;
    options.kv_cache_memory = int64_t{16} << 20;
    auto engine = Engine::Load(options);
    BINARYMOS_CHECK(engine.ok()) << engine.status().ToString();
    const auto result = MeasurePerplexity(
        **engine,
        "Once upon a time there was a poor miller who had an old mill and a "
        "clever daughter. One day the king came by, and he was thirsty.",
        {.window = kTokens});
    BINARYMOS_CHECK(result.ok()) << result.status().ToString();
    EXPECT_EQ(result->num_windows, 1);
    return result->perplexity;
  }
};

TEST_F(PerplexityOfTalesTest, OnACpuIsThatOfTheReference) {
  const double reference = Measure("reference", "f16");
  EXPECT_GT(reference, 5);
  EXPECT_NEAR(Measure("auto", "f16"), reference, 5e-4 * reference);
}

TEST_F(PerplexityOfTalesTest, AnLmHeadOfInt8IsOffByLessThanAPercent) {
  const double exact = Measure("auto", "f16");
  const double rounded = Measure("auto", "int8");
  EXPECT_NE(rounded, exact);
  EXPECT_NEAR(rounded, exact, 1e-2 * exact);
}

}  // namespace
}  // namespace binarymos
