// An engine that computes nothing: tokens come from a script, steps pass a gate
// that the test holds, and the tokenizer knows bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "engine/engine.h"

namespace binarymos {

// Ids: <unk>, <s>, </s>, one token per byte, then some pieces of several bytes.
// Text begins with a space of the tokenizer's own, as sentencepiece does it.
class FakeTokenizer : public Tokenizer {
 public:
  static constexpr TokenId kBos = 1;
  static constexpr TokenId kEos = 2;
  static constexpr TokenId Byte(unsigned char byte) { return 3 + byte; }
  static constexpr TokenId kThe = 259;    // " the"
  static constexpr TokenId kCafe = 260;   // "caf" and the first byte of "é"
  static constexpr TokenId kAcute = 261;  // the second byte of "é", " au"
  static constexpr TokenId kLong = 262;   // 1,024 bytes
  static constexpr int kVocabSize = 263;

  int vocab_size() const override { return kVocabSize; }
  TokenId bos() const override { return kBos; }
  TokenId eos() const override { return kEos; }

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              bool add_bos) const override {
    if (text.find('\xff') != std::string_view::npos) {
      return absl::InvalidArgumentError("the text is not valid UTF-8");
    }
    std::vector<TokenId> tokens;
    if (add_bos) tokens.push_back(kBos);
    if (!text.empty()) tokens.push_back(Byte(' '));
    for (const char c : text) tokens.push_back(Byte(c));
    return tokens;
  }

  std::string Piece(TokenId token, bool keep_special) const override {
    switch (token) {
      case 0:
        return keep_special ? "<unk>" : "";
      case kBos:
        return keep_special ? "<s>" : "";
      case kEos:
        return keep_special ? "</s>" : "";
      case kThe:
        return " the";
      case kCafe:
        return "caf\xC3";
      case kAcute:
        return "\xA9 au";
      case kLong:
        return std::string(1024, 'x');
      default:
        return std::string(1, static_cast<char>(token - 3));
    }
  }

  // Written apart from server/utf8_assembler.cc, which is held against it.
  std::string Decode(const std::vector<TokenId>& tokens,
                     bool keep_special) const override {
    std::string bytes;
    bool first = true;
    for (const TokenId token : tokens) {
      std::string piece = Piece(token, keep_special);
      if (first && token > kEos) {
        if (piece[0] == ' ') piece.erase(0, 1);
        first = false;
      }
      bytes += piece;
    }
    std::string text;
    for (size_t i = 0; i < bytes.size();) {
      const size_t length = CharLength(std::string_view(bytes).substr(i));
      text += length == 0 ? "\xEF\xBF\xBD" : bytes.substr(i, length);
      i += length == 0 ? 1 : length;
    }
    return text;
  }

 private:
  static size_t CharLength(std::string_view bytes) {
    const auto at = [&](size_t i) -> uint32_t {
      return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0;
    };
    const auto tail = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
    if (at(0) < 0x80) return 1;
    if ((at(0) & 0xE0) == 0xC0 && tail(1)) return at(0) >= 0xC2 ? 2 : 0;
    if ((at(0) & 0xF0) == 0xE0 && tail(1) && tail(2)) {
      const uint32_t code = ((at(0) & 0x0F) << 12) | ((at(1) & 0x3F) << 6);
      return code >= 0x800 && (code < 0xD800 || code >= 0xE000) ? 3 : 0;
    }
    if ((at(0) & 0xF8) == 0xF0 && tail(1) && tail(2) && tail(3)) {
      const uint32_t code = ((at(0) & 0x07) << 18) | ((at(1) & 0x3F) << 12);
      return code >= 0x10000 && code < 0x110000 ? 4 : 0;
    }
    return 0;
  }
};

// Lets steps pass. Open at first. Thread-safe.
class StepGate {
 public:
  void Open() {
    MutexLock lock(mutex_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Close() {
    MutexLock lock(mutex_);
    open_ = false;
    permits_ = 0;
  }
  // Lets `n` steps pass a gate that is closed.
  void Allow(int n) {
    MutexLock lock(mutex_);
    permits_ += n;
    changed_.NotifyAll();
  }
  // Until a step stands before the closed gate.
  void WaitForStep() {
    MutexLock lock(mutex_);
    while (num_waiting_ == 0 || permits_ > 0) changed_.Wait(mutex_);
  }

  void Pass() {  // the runner's side
    MutexLock lock(mutex_);
    ++num_waiting_;
    changed_.NotifyAll();
    while (!open_ && permits_ == 0) changed_.Wait(mutex_);
    --num_waiting_;
    if (!open_) --permits_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  int permits_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What token a sample has at output position `index`.
using TokenScript = std::function<TokenId(const std::vector<TokenId>& prompt,
                                          const SamplingParams& sampling,
                                          int sample, int index)>;

// Logits that hold NaN.
inline constexpr TokenId kNotFinite = -2;

// `text`, byte by byte, then EOS.
inline TokenScript Say(std::string text) {
  return [text = std::move(text)](const std::vector<TokenId>&,
                                  const SamplingParams&, int, int index) {
    return index < static_cast<int>(text.size())
               ? FakeTokenizer::Byte(text[index])
               : FakeTokenizer::kEos;
  };
}

// These tokens, then EOS.
inline TokenScript Emit(std::vector<TokenId> tokens) {
  return [tokens = std::move(tokens)](const std::vector<TokenId>&,
                                      const SamplingParams&, int, int index) {
    return index < static_cast<int>(tokens.size()) ? tokens[index]
                                                   : FakeTokenizer::kEos;
  };
}

// Letters without end, which depend on the prompt's length, the sample and the
// seed.
inline TokenId Letters(const std::vector<TokenId>& prompt,
                       const SamplingParams& sampling, int sample, int index) {
  return FakeTokenizer::Byte(static_cast<unsigned char>(
      'a' + (prompt.size() + 7 * sample + sampling.seed % 5 + index) % 26));
}

class FakeRunner : public ModelRunner {
 public:
  explicit FakeRunner(TokenScript script) : script_(std::move(script)) {}

  int max_steps_in_flight() const override { return 2; }

  void AddSequence(SlotId slot, const SequenceInit& init) override {
    slots_[slot] = {*init.sampling,
                    static_cast<int>(init.sample_index),
                    {init.prompt.begin(), init.prompt.end()}};
  }
  void RemoveSequence(SlotId slot) override { slots_.erase(slot); }

  absl::Status Submit(const BatchPlan& plan) override {
    gate.Pass();
    if (fail.load()) return absl::InternalError("the device is lost");
    StepResult& result = results_.emplace_back();
    result.step = plan.step;
    result.stats.num_tokens = plan.num_tokens;
    result.stats.num_rows = static_cast<int>(plan.rows.size());
    for (const BatchRow& row : plan.rows) {
      result.rows.push_back(Compute(row));
    }
    if (progress_) progress_();
    return absl::OkStatus();
  }

  absl::Status Wait(StepResult& result) override {
    result = std::move(results_.front());
    results_.pop_front();
    return absl::OkStatus();
  }

  void SetProgressCallback(std::function<void()> callback) override {
    progress_ = std::move(callback);
  }

  StepGate gate;
  std::atomic<bool> fail{false};  // the next step, and all that follow

 private:
  struct Slot {
    SamplingParams sampling;
    int sample = 0;
    std::vector<TokenId> prompt;
  };

  static PositionLogprobs Logprobs(TokenId token, int num_top) {
    PositionLogprobs logprobs;
    logprobs.chosen = {token, -0.5f};
    for (int i = 0; i < num_top; ++i) {
      logprobs.top.push_back({(token + i) % FakeTokenizer::kVocabSize,
                              -0.5f - static_cast<float>(i)});
    }
    return logprobs;
  }

  StepResultRow Compute(const BatchRow& row) {
    const Slot& slot = slots_.at(row.slot);
    StepResultRow result;
    result.slot = row.slot;
    if (row.num_prompt_logprobs >= 0) {
      for (size_t i = row.first_position == 0 ? 1 : 0; i < row.tokens.size();
           ++i) {
        result.prompt_logprobs.push_back(
            Logprobs(row.tokens[i], row.num_prompt_logprobs));
      }
    }
    if (!row.sample) return result;
    const int index = row.first_position + row.num_tokens() -
                      static_cast<int>(slot.prompt.size());
    TokenId token = script_(slot.prompt, slot.sampling, slot.sample, index);
    if (token == kNotFinite) {
      result.not_finite = true;
      return result;
    }
    if (index < slot.sampling.min_tokens) {
      for (const TokenId suppressed : slot.sampling.suppressed_tokens) {
        if (token == suppressed) token = FakeTokenizer::Byte('m');
      }
    }
    result.token = token;
    if (row.num_logprobs >= 0) {
      result.logprobs = Logprobs(token, row.num_logprobs);
    }
    return result;
  }

  const TokenScript script_;
  std::map<SlotId, Slot> slots_;
  std::deque<StepResult> results_;
  std::function<void()> progress_;
};

class FakeEngine : public Engine {
 public:
  explicit FakeEngine(TokenScript script = Letters)
      : runner_(std::move(script)) {
    cache.num_blocks = 1 << 16;
    cache.max_num_seqs = 64;
    cache.max_model_len = 1 << 20;
    cache.max_num_batched_tokens = 2048;
    info_.architecture = "llama";
    info_.quant_method = "binarymos";
    info_.device = "fake";
    info_.num_experts = 4;
    info_.vocab_size = FakeTokenizer::kVocabSize;
    info_.num_layers = 2;
    info_.bits_per_weight = 1.25;
    info_.kv_cache_dtype = "fp8_e4m3";
  }

  FakeRunner& runner() override { return runner_; }
  const CacheConfig& cache_config() const override { return cache; }
  const ModelInfo& info() const override { return info_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  const std::vector<TokenId>& eos_tokens() const override { return eos_; }

  CacheConfig cache;  // change before the server starts

 private:
  FakeRunner runner_;
  FakeTokenizer tokenizer_;
  ModelInfo info_;
  const std::vector<TokenId> eos_ = {FakeTokenizer::kEos};
};

}  // namespace binarymos
