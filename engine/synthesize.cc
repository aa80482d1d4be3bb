#include "engine/synthesize.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/core/float16.h"
#include "engine/core/tensor.h"
#include "engine/model/llama_config.h"
#include "engine/model/regular_file.h"
#include "engine/synthetic_tokenizer.h"

namespace binarymos {
namespace {

constexpr int kBos = 1;
constexpr int kEos = 2;

// xorshift64*, seeded through splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) {
    seed += 0x9e3779b97f4a7c15u;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
    seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebu;
    state_ = (seed ^ (seed >> 31)) | 1;
  }
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }

 private:
  uint64_t state_;
};

// A tensor to write: random bits (U8), or F16 values that are uniform around
// `mean`.
struct TensorPlan {
  std::string name;
  DType dtype = DType::kF16;
  Shape shape;
  double mean = 0;
  double deviation = 0;  // standard deviation

  size_t bytes() const {
    return static_cast<size_t>(shape.num_elements()) * SizeOf(dtype);
  }
};

// --- What to write ---

std::string ConfigJson(const SyntheticShape& shape) {
  std::string json = absl::StrFormat(
      "{\n"
      "  \"architectures\": [\"LlamaForCausalLM\"],\n"
      "  \"model_type\": \"llama\",\n"
      "  \"hidden_act\": \"silu\",\n"
      "  \"hidden_size\": %d,\n"
      "  \"intermediate_size\": %d,\n"
      "  \"num_hidden_layers\": %d,\n"
      "  \"num_attention_heads\": %d,\n"
      "  \"num_key_value_heads\": %d,\n"
      "  \"vocab_size\": %d,\n"
      "  \"max_position_embeddings\": %d,\n"
      "  \"rms_norm_eps\": %.9g,\n"
      "  \"rope_theta\": %.17g,\n"
      "  \"bos_token_id\": %d,\n"
      "  \"eos_token_id\": %d,\n",
      shape.hidden_size, shape.intermediate_size, shape.num_layers,
      shape.num_heads, shape.num_kv_heads, shape.vocab_size,
      shape.max_position_embeddings, shape.rms_norm_eps, shape.rope_theta, kBos,
      kEos);
  if (shape.head_dim != 0) {
    absl::StrAppend(&json, "  \"head_dim\": ", shape.head_dim, ",\n");
  }
  if (shape.rope_scaling != "none") {
    absl::StrAppendFormat(
        &json, "  \"rope_scaling\": {\"type\": \"%s\", \"factor\": %.17g},\n",
        shape.rope_scaling, shape.rope_factor);
  }
  if (shape.quant_method == "binarymos") {
    absl::StrAppend(&json,
                    "  \"quantization_config\": {\"quant_method\": "
                    "\"binarymos\", \"num_experts\": ",
                    shape.num_experts, ", \"version\": 1},\n");
  }
  const auto boolean = [](bool value) { return value ? "true" : "false"; };
  absl::StrAppend(
      &json, "  \"attention_bias\": ", boolean(shape.attention_bias),
      ",\n  \"mlp_bias\": ", boolean(shape.mlp_bias),
      ",\n  \"tie_word_embeddings\": ", boolean(shape.tie_word_embeddings),
      ",\n  \"torch_dtype\": \"float16\"\n}\n");
  return json;
}

std::string GenerationConfigJson() {
  return absl::StrCat("{\n  \"bos_token_id\": ", kBos,
                      ",\n  \"eos_token_id\": ", kEos, "\n}\n");
}

// All tensors of a model in the order of the layers. Linear layers are scaled
// so that inputs of unit scale give outputs of scale `gain`.
class ModelPlan {
 public:
  ModelPlan(const SyntheticShape& shape, const LlamaConfig& config)
      : shape_(shape), config_(config) {
    const int64_t hidden = config.hidden_size;
    // A tied embedding is the output layer too, whose logits it has to scale.
    const double logit_scale = 3 / std::sqrt(hidden);
    Value("model.embed_tokens.weight", {config.vocab_size, hidden}, 0,
          config.tie_word_embeddings ? logit_scale : 1.0);
    for (int layer = 0; layer < config.num_layers; ++layer) AddLayer(layer);
    Norm("model.norm.weight");
    if (!config.tie_word_embeddings) {
      Value("lm_head.weight", {config.vocab_size, hidden}, 0, logit_scale);
    }
  }

  const std::vector<TensorPlan>& tensors() const { return tensors_; }

 private:
  void AddLayer(int layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    const int64_t hidden = config_.hidden_size;
    const int64_t ffn = config_.intermediate_size;
    const bool bias = config_.attention_bias;
    // 2 L additions to the residual stream leave it at unit scale.
    const double branch = 1 / std::sqrt(2.0 * config_.num_layers);
    Norm(prefix + "input_layernorm.weight");
    Linear(attention + "q_proj", hidden, config_.q_size(), 1, bias);
    Linear(attention + "k_proj", hidden, config_.kv_size(), 1, bias);
    Linear(attention + "v_proj", hidden, config_.kv_size(), 1, bias);
    Linear(attention + "o_proj", config_.q_size(), hidden, 2 * branch, bias);
    Norm(prefix + "post_attention_layernorm.weight");
    Linear(mlp + "gate_proj", hidden, ffn, 1, config_.mlp_bias);
    Linear(mlp + "up_proj", hidden, ffn, 1, config_.mlp_bias);
    // silu(gate) * up of unit inputs has a scale of about a half.
    Linear(mlp + "down_proj", ffn, hidden, 2 * branch, config_.mlp_bias);
  }

  void Linear(const std::string& name, int64_t in, int64_t out, double gain,
              bool bias) {
    const double scale = gain / std::sqrt(in);
    if (config_.quant_method == QuantMethod::kFloat16) {
      Value(name + ".weight", {out, in}, 0, scale);
    } else {
      const int64_t experts = config_.num_experts;
      tensors_.push_back({name + ".sign", DType::kU8, {out, in / 8}});
      if (shape_.router) {
        Value(name + ".gate", {experts, in}, 0, 1 / std::sqrt(in));
      }
      Value(name + ".in_scale", {experts, in}, 1, 0.1);
      Value(name + ".out_scale", {experts, out}, scale, 0.1 * scale);
    }
    if (bias) Value(name + ".bias", {out}, 0, 0.02);
  }

  void Norm(const std::string& name) {
    Value(name, {config_.hidden_size}, 1, 0.05);
  }

  void Value(std::string name, Shape shape, double mean, double deviation) {
    tensors_.push_back({std::move(name), DType::kF16, shape, mean, deviation});
  }

  const SyntheticShape& shape_;
  const LlamaConfig& config_;
  std::vector<TensorPlan> tensors_;
};

// Header of a safetensors file with `tensors` one after the other.
std::string SafetensorsHeader(const std::vector<TensorPlan>& tensors) {
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";
  size_t offset = 0;
  for (const TensorPlan& tensor : tensors) {
    absl::StrAppend(
        &json, ",\"", tensor.name, "\":{\"dtype\":\"", Name(tensor.dtype),
        "\",\"shape\":", tensor.shape.ToString(), ",\"data_offsets\":[", offset,
        ",", offset + tensor.bytes(), "]}");
    offset += tensor.bytes();
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');  // aligns the data
  const uint64_t length = json.size();
  std::string header(sizeof(length), '\0');
  std::memcpy(header.data(), &length, sizeof(length));
  return header + json;
}

// --- Writing ---

// A new file. Not usable after an error.
class OutputFile {
 public:
  static absl::StatusOr<OutputFile> Create(std::string path) {
    const int fd =
        open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return ErrnoStatus(errno, "create", path);
    return OutputFile(fd, std::move(path));
  }
  OutputFile(OutputFile&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile() {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Write(const void* data, size_t bytes) {
    const auto* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = write(fd_, next, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(errno, "write", path_);
      next += n;
      bytes -= static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

  absl::Status Close() {
    if (close(std::exchange(fd_, -1)) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, "close", path_);
  }

 private:
  OutputFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  int fd_;
  std::string path_;
};

absl::Status WriteFile(const std::string& path, const std::string& content) {
  absl::StatusOr<OutputFile> file = OutputFile::Create(path);
  if (!file.ok()) return file.status();
  if (auto status = file->Write(content.data(), content.size()); !status.ok()) {
    return status;
  }
  return file->Close();
}

// Fills `words` with four F16 values each, or with random bits.
void FillRandom(const TensorPlan& tensor, Random& random,
                std::vector<uint64_t>& words) {
  if (tensor.dtype == DType::kU8) {
    std::generate(words.begin(), words.end(), [&] { return random.Next(); });
    return;
  }
  // A uniform distribution has a standard deviation of width / sqrt(12).
  const auto step =
      static_cast<float>(tensor.deviation * std::sqrt(12.0) / 65536);
  const auto first = static_cast<float>(tensor.mean) - 32767.5f * step;
  for (uint64_t& word : words) {
    const uint64_t bits = random.Next();
    word = 0;
    for (int i = 0; i < 64; i += 16) {
      const auto uniform = static_cast<float>(bits >> i & 0xffff);
      word |= uint64_t{FloatToHalf(first + uniform * step)} << i;
    }
  }
}

absl::Status WriteTensor(const TensorPlan& tensor, uint64_t seed,
                         OutputFile& file) {
  constexpr size_t kChunkBytes = 1 << 20;
  Random random(seed);
  std::vector<uint64_t> words;
  for (size_t written = 0; written < tensor.bytes();) {
    const size_t bytes = std::min(kChunkBytes, tensor.bytes() - written);
    words.resize((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
    FillRandom(tensor, random, words);
    if (auto status = file.Write(words.data(), bytes); !status.ok()) {
      return status;
    }
    written += bytes;
  }
  return absl::OkStatus();
}

absl::Status WriteSafetensors(const std::string& path,
                              std::vector<TensorPlan> tensors, uint64_t seed) {
  // F16 first: bytes of signs may be odd in number.
  std::stable_partition(
      tensors.begin(), tensors.end(),
      [](const TensorPlan& tensor) { return tensor.dtype == DType::kF16; });
  absl::StatusOr<OutputFile> file = OutputFile::Create(path);
  if (!file.ok()) return file.status();
  const std::string header = SafetensorsHeader(tensors);
  absl::Status status = file->Write(header.data(), header.size());
  Random seeds(seed);
  for (const TensorPlan& tensor : tensors) {
    if (!status.ok()) return status;
    status = WriteTensor(tensor, seeds.Next(), *file);
  }
  return status.ok() ? file->Close() : status;
}

// A directory beside the one to be written, removed unless it becomes it.
class TemporaryDirectory {
 public:
  static absl::StatusOr<TemporaryDirectory> CreateBeside(
      const std::string& target) {
    for (int attempt = 0;; ++attempt) {
      const std::string path =
          absl::StrCat(target, ".tmp-", getpid(), "-", attempt);
      if (mkdir(path.c_str(), 0777) == 0) return TemporaryDirectory(path);
      if (errno != EEXIST || attempt == 1000) {
        return ErrnoStatus(errno, "create", path);
      }
    }
  }
  TemporaryDirectory(TemporaryDirectory&& other) noexcept
      : path_(std::exchange(other.path_, {})) {}
  TemporaryDirectory& operator=(TemporaryDirectory&&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

  // Replaces nothing, or an empty directory.
  absl::Status RenameTo(const std::string& target) {
    if (rename(path_.c_str(), target.c_str()) == 0) {
      path_.clear();
      return absl::OkStatus();
    }
    if (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR) {
      return absl::AlreadyExistsError(target + " exists already");
    }
    return ErrnoStatus(errno, "create", target);
  }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}

  std::string path_;
};

// The configuration that loading will see, with its checks.
absl::StatusOr<LlamaConfig> CheckShape(const SyntheticShape& shape) {
  const auto fail = [](const auto&... parts) {
    return absl::InvalidArgumentError(
        absl::StrCat("synthetic shape: ", parts...));
  };
  if (shape.vocab_size < kMinSyntheticVocab) {
    return fail("vocab_size is ", shape.vocab_size, ", expected at least ",
                kMinSyntheticVocab);
  }
  if (shape.rope_scaling != "none" && shape.rope_scaling != "linear" &&
      shape.rope_scaling != "dynamic") {
    return fail("rope_scaling is \"", shape.rope_scaling,
                "\", expected none, linear or dynamic");
  }
  if (shape.quant_method != "binarymos" && shape.quant_method != "float16") {
    return fail("quant_method is \"", shape.quant_method,
                "\", expected binarymos or float16");
  }
  if (!shape.router &&
      (shape.num_experts != 1 || shape.quant_method != "binarymos")) {
    return fail("router is false, which needs binarymos with num_experts 1");
  }
  return LlamaConfig::Parse(ConfigJson(shape), "synthetic shape");
}

absl::Status CheckTarget(const std::string& dir) {
  std::error_code error;
  if (!std::filesystem::exists(dir, error)) return absl::OkStatus();
  if (std::filesystem::is_directory(dir, error) &&
      std::filesystem::is_empty(dir, error)) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(
      dir + " exists already, expected a new name or an empty directory");
}

}  // namespace

absl::StatusOr<SyntheticShape> SyntheticShapeByName(std::string_view name) {
  if (name == "tiny") return SyntheticShape{};
  if (name == "1b") {
    return SyntheticShape{.hidden_size = 2048,
                          .intermediate_size = 5632,
                          .num_layers = 22,
                          .num_heads = 32,
                          .num_kv_heads = 4,
                          .vocab_size = 32000};
  }
  if (name == "7b") {
    return SyntheticShape{.hidden_size = 4096,
                          .intermediate_size = 11008,
                          .num_layers = 32,
                          .num_heads = 32,
                          .num_kv_heads = 32,
                          .vocab_size = 32000,
                          .max_position_embeddings = 4096};
  }
  return absl::NotFoundError(absl::StrCat("there is no synthetic shape \"",
                                          std::string(name),
                                          "\", expected tiny, 1b or 7b"));
}

absl::Status SynthesizeModel(const std::string& model_dir,
                             const SyntheticShape& shape, uint64_t seed) {
  std::string target = model_dir;
  while (target.size() > 1 && target.ends_with('/')) target.pop_back();
  const absl::StatusOr<LlamaConfig> config = CheckShape(shape);
  if (!config.ok()) return config.status();
  absl::Status status = CheckTarget(target);
  if (!status.ok()) return status;
  absl::StatusOr<TemporaryDirectory> temporary =
      TemporaryDirectory::CreateBeside(target);
  if (!temporary.ok()) return temporary.status();
  const std::string dir = temporary->path() + "/";

  status = WriteFile(dir + "config.json", ConfigJson(shape));
  if (status.ok()) {
    status = WriteFile(dir + "generation_config.json", GenerationConfigJson());
  }
  if (status.ok()) {
    status = WriteFile(dir + "tokenizer.model",
                       internal::SyntheticTokenizer::Build(shape.vocab_size));
  }
  if (status.ok()) {
    status = WriteSafetensors(dir + "model.safetensors",
                              ModelPlan(shape, *config).tensors(), seed);
  }
  return status.ok() ? temporary->RenameTo(target) : status;
}

}  // namespace binarymos
