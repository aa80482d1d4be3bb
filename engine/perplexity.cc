#include "engine/perplexity.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <span>

#include "absl/strings/str_cat.h"
#include "engine/api/batch_plan.h"
#include "engine/api/sampling_params.h"

namespace binarymos {
namespace {

constexpr int kDefaultWindow = 2048;

absl::StatusOr<int> WindowOf(const Engine& engine, int window) {
  const int longest = std::min(engine.cache_config().max_model_len,
                               engine.cache_config().num_blocks * kBlockSize);
  if (window == 0) {
    window = std::min(kDefaultWindow, engine.info().max_position_embeddings);
  }
  if (window >= 2 && window <= longest) return window;
  return absl::InvalidArgumentError(
      absl::StrCat("--window is ", window, "; it must be from 2 to ", longest,
                   ", what the model and the KV cache have room for"));
}

absl::Status CheckTokens(const std::vector<TokenId>& tokens, int window,
                         int vocab_size) {
  if (tokens.size() < static_cast<size_t>(window)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", tokens.size(),
                     " tokens, which do not fill one window of ", window));
  }
  for (const TokenId token : tokens) {
    if (token < 0 || token >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", token, " is not in the vocabulary of ", vocab_size));
    }
  }
  return absl::OkStatus();
}

// Computes windows one after the other, in slot 0.
class Meter {
 public:
  Meter(Engine& engine, int window)
      : runner_(engine.runner()),
        step_tokens_(engine.cache_config().max_num_batched_tokens),
        blocks_((window + kBlockSize - 1) / kBlockSize) {
    std::iota(blocks_.begin(), blocks_.end(), 0);
  }

  // Mean negative log-likelihood of tokens[1:]. `on_step(tokens done)` after
  // each step but the last.
  template <typename OnStep>
  absl::StatusOr<double> Window(std::span<const TokenId> tokens,
                                OnStep on_step) {
    SamplingParams greedy;
    greedy.temperature = 0.0f;
    runner_.AddSequence(0, {&greedy, 0, tokens});
    absl::Status status;
    double sum = 0;
    for (size_t begin = 0; begin < tokens.size() && status.ok();) {
      const size_t count = std::min(tokens.size() - begin, step_tokens_);
      status = Step(tokens.subspan(begin, count), begin, &sum);
      begin += count;
      if (status.ok() && begin < tokens.size()) {
        on_step(static_cast<int64_t>(begin));
      }
    }
    runner_.RemoveSequence(0);
    if (!status.ok()) return status;
    return sum / static_cast<double>(tokens.size() - 1);
  }

 private:
  // Subtracts from `sum` the log-likelihoods that positions [first,
  // first + size) complete.
  absl::Status Step(std::span<const TokenId> tokens, size_t first,
                    double* sum) {
    BatchRow row;
    row.tokens = tokens;
    row.first_position = static_cast<int32_t>(first);
    row.block_table = blocks_;
    row.num_prompt_logprobs = 0;
    BatchPlan plan;
    plan.step = next_step_++;
    plan.rows.push_back(row);
    plan.num_tokens = static_cast<int>(tokens.size());
    absl::Status status = runner_.Submit(plan);
    if (status.ok()) status = runner_.Wait(result_);
    if (!status.ok()) return status;
    const StepResultRow& result = result_.rows[0];
    if (result.not_finite) {
      return absl::DataLossError(absl::StrCat(
          "the model gives logits that are not finite after position ", first,
          " of a window"));
    }
    for (const PositionLogprobs& position : result.prompt_logprobs) {
      *sum -= position.chosen.logprob;
    }
    return absl::OkStatus();
  }

  ModelRunner& runner_;
  const size_t step_tokens_;
  std::vector<BlockId> blocks_;
  StepId next_step_ = 0;
  StepResult result_;
};

}  // namespace

absl::StatusOr<PerplexityResult> MeasurePerplexity(
    Engine& engine, const std::vector<TokenId>& tokens,
    const PerplexityOptions& options) {
  const absl::StatusOr<int> window = WindowOf(engine, options.window);
  if (!window.ok()) return window.status();
  if (auto status = CheckTokens(tokens, *window, engine.info().vocab_size);
      !status.ok()) {
    return status;
  }
  PerplexityResult result;
  result.window = *window;
  result.num_tokens = static_cast<int64_t>(tokens.size());
  result.num_windows = result.num_tokens / *window;
  result.tokens_used = result.num_windows * *window;

  const auto start = std::chrono::steady_clock::now();
  PerplexityProgress progress{.total_tokens = result.tokens_used};
  const auto report = [&](int64_t tokens_done) {
    progress.tokens_done = tokens_done;
    if (options.on_progress) options.on_progress(progress);
  };
  Meter meter(engine, *window);
  double sum = 0;
  for (int64_t i = 0; i < result.num_windows; ++i) {
    const int64_t begin = i * *window;
    const absl::StatusOr<double> loss =
        meter.Window(std::span(tokens).subspan(begin, *window),
                     [&](int64_t done) { report(begin + done); });
    if (!loss.ok()) return loss.status();
    sum += *loss;
    progress.perplexity = std::exp(sum / static_cast<double>(i + 1));
    report(begin + *window);
  }
  result.perplexity = progress.perplexity;
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  return result;
}

absl::StatusOr<PerplexityResult> MeasurePerplexity(
    Engine& engine, std::string_view text, const PerplexityOptions& options) {
  const absl::StatusOr<std::vector<TokenId>> tokens =
      engine.tokenizer().Encode(text, /*add_bos=*/true);
  if (!tokens.ok()) return tokens.status();
  return MeasurePerplexity(engine, *tokens, options);
}

}  // namespace binarymos
