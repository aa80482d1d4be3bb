#include "engine/convert.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/convert_plan.h"
#include "engine/core/float16.h"
#include "engine/manifest.h"
#include "engine/model/checkpoint.h"
#include "engine/model/regular_file.h"
#include "engine/output_directory.h"
#include "engine/rank1.h"
#include "engine/safetensors_writer.h"
#include "engine/tensor_convert.h"

namespace binarymos {
namespace {

constexpr int64_t kChunkElements = 1 << 19;  // a multiple of 8
constexpr size_t kMaxCompanionBytes = 64 << 20;
constexpr const char* kTokenizer = "tokenizer.model";
constexpr const char* kCompanions[] = {kTokenizer, "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "generation_config.json"};

// The process's anonymous memory now, in bytes; 0 where the kernel does not
// say.
int64_t AnonymousBytes() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (!absl::StartsWith(line, "RssAnon:")) continue;
    return std::strtoll(line.c_str() + sizeof("RssAnon:") - 1, nullptr, 10) *
           1024;
  }
  return 0;
}

// Writing into `target` must not remove `source`.
absl::Status CheckPaths(const std::string& source, const std::string& target) {
  std::error_code error;
  const auto from = std::filesystem::weakly_canonical(source, error);
  const auto to = std::filesystem::weakly_canonical(target, error);
  const auto [end, unused] =
      std::mismatch(to.begin(), to.end(), from.begin(), from.end());
  const bool contains =
      end == to.end() || (std::next(end) == to.end() && end->empty());
  if (!contains) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the target ", target, " is or contains the source ", source,
                   "; give another directory"));
}

uint64_t HashOf(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  }
  return hash;
}

// Computes tensors and streams them into files.
class TensorConverter {
 public:
  TensorConverter(const Checkpoint& checkpoint, const ConvertOptions& options,
                  ConvertReport& report)
      : checkpoint_(checkpoint), options_(options), report_(report) {}

  absl::Status Write(const TensorJob& job, SafetensorsWriter& writer) {
    absl::Status status;
    switch (job.kind) {
      case TensorJob::Kind::kValues:
        status = WriteValues(job, writer);
        break;
      case TensorJob::Kind::kSigns:
        status = WriteSigns(job, writer);
        break;
      case TensorJob::Kind::kInScale:
        status = WriteScale(job, SvdOf(job.source).in_scale, writer);
        break;
      case TensorJob::Kind::kOutScale:
        status = WriteScale(job, SvdOf(job.source).out_scale, writer);
        break;
      case TensorJob::Kind::kRouter:
        status = WriteRouter(job, writer);
    }
    report_.peak_anonymous_bytes =
        std::max(report_.peak_anonymous_bytes, AnonymousBytes());
    return status;
  }

  // Gives the pages of a source tensor back and counts it as read.
  void Finish(const std::string& source) {
    const ConstTensorView tensor = Find(source);
    checkpoint_.Release(tensor);
    report_.source_bytes += static_cast<int64_t>(tensor.bytes());
    svd_.reset();
  }

 private:
  ConstTensorView Find(const std::string& name) const {
    const auto tensor = checkpoint_.Find(name);
    BINARYMOS_CHECK(tensor.ok()) << tensor.status().ToString();
    return *tensor;
  }

  template <typename... Parts>
  absl::Status Error(const std::string& tensor, const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint_.FileOf(tensor), ": tensor \"", tensor, "\" ", parts...));
  }

  absl::Status CheckFinite(const std::string& name,
                           const ConstTensorView& tensor) const {
    const int64_t at = FindNotFinite(tensor);
    if (at < 0) return absl::OkStatus();
    return Error(name, "holds ",
                 std::isnan(ElementOf(tensor, at)) ? "NaN" : "Inf",
                 " at element ", at, ", expected finite numbers");
  }

  // function(chunk, index of its first element) for chunks of `tensor` until
  // one fails.
  template <typename Function>
  static absl::Status ForChunks(const ConstTensorView& tensor,
                                Function function) {
    const int64_t size = tensor.shape.num_elements();
    for (int64_t begin = 0; begin < size; begin += kChunkElements) {
      const int64_t count = std::min(kChunkElements, size - begin);
      const absl::Status status = function(Slice(tensor, begin, count), begin);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status WriteValues(const TensorJob& job, SafetensorsWriter& writer) {
    const ConstTensorView tensor = Find(job.source);
    absl::Status status = CheckFinite(job.source, tensor);
    if (!status.ok()) return status;
    return ForChunks(tensor, [&](const ConstTensorView& chunk, int64_t begin) {
      halves_.resize(chunk.shape[0]);
      const HalvesResult result = ToHalves(chunk, halves_);
      if (result.overflow >= 0) {
        return Error(job.source, "holds ", ElementOf(chunk, result.overflow),
                     " at element ", begin + result.overflow,
                     ", which does not fit float16 (up to 65504)");
      }
      report_.num_flushed += result.num_flushed;
      return writer.Append(halves_.data(), halves_.size() * sizeof(uint16_t));
    });
  }

  absl::Status WriteSigns(const TensorJob& job, SafetensorsWriter& writer) {
    const ConstTensorView tensor = Find(job.source);
    absl::Status status = CheckFinite(job.source, tensor);
    int64_t num_zeros = 0;
    if (status.ok()) {
      status = ForChunks(tensor, [&](const ConstTensorView& chunk, int64_t) {
        bytes_.resize(chunk.shape[0] / 8);
        num_zeros += PackSigns(chunk, bytes_);
        return writer.Append(bytes_.data(), bytes_.size());
      });
    }
    if (!status.ok() || num_zeros == 0) return status;
    const int64_t num_elements = tensor.shape.num_elements();
    if (options_.strict) {
      return absl::FailedPreconditionError(absl::StrCat(
          checkpoint_.FileOf(job.source), ": tensor \"", job.source, "\" has ",
          num_zeros, " exact zeros of ", num_elements,
          " weights, which --strict refuses: a zero has no sign"));
    }
    report_.zeros.push_back({job.source, num_zeros, num_elements});
    report_.num_zeros += num_zeros;
    return absl::OkStatus();
  }

  // The decomposition of the tensor that is being converted.
  const Rank1& SvdOf(const std::string& source) {
    if (!svd_.has_value()) svd_ = Rank1OfAbs(Find(source));
    return *svd_;
  }

  // [experts, size], every row `scale`.
  absl::Status WriteScale(const TensorJob& job, const std::vector<float>& scale,
                          SafetensorsWriter& writer) {
    halves_.resize(scale.size());
    const ConstTensorView view = {
        scale.data(), DType::kF32, {static_cast<int64_t>(scale.size())}};
    const HalvesResult result = ToHalves(view, halves_);
    if (result.overflow >= 0) {
      return Error(job.source, "needs a scale of ", scale[result.overflow],
                   ", which does not fit float16 (up to 65504)");
    }
    for (int64_t expert = 0; expert < job.target.shape[0]; ++expert) {
      report_.num_flushed += result.num_flushed;
      const absl::Status status =
          writer.Append(halves_.data(), halves_.size() * sizeof(uint16_t));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // As torch starts a linear layer: uniform within 1 / sqrt(inputs).
  absl::Status WriteRouter(const TensorJob& job, SafetensorsWriter& writer) {
    const double bound = 1 / std::sqrt(job.target.shape[1]);
    uint64_t state = HashOf(job.target.name);
    halves_.resize(job.target.shape.num_elements());
    for (uint16_t& half : halves_) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const double unit = static_cast<double>(state >> 11) * 0x1p-53;
      half = FloatToHalf(static_cast<float>((2 * unit - 1) * bound));
    }
    return writer.Append(halves_.data(), halves_.size() * sizeof(uint16_t));
  }

  const Checkpoint& checkpoint_;
  const ConvertOptions& options_;
  ConvertReport& report_;
  std::optional<Rank1> svd_;
  std::vector<uint16_t> halves_;
  std::vector<uint8_t> bytes_;
};

std::vector<TensorSpec> SpecsOf(std::span<const TensorJob> jobs) {
  std::vector<TensorSpec> specs;
  for (const TensorJob& job : jobs) specs.push_back(job.target);
  return specs;
}

// Bytes of the source's tensors that `jobs` read, each once.
int64_t SourceBytes(const Checkpoint& checkpoint,
                    std::span<const TensorJob> jobs) {
  int64_t bytes = 0;
  std::string previous;
  for (const TensorJob& job : jobs) {
    if (job.source.empty() || job.source == previous) continue;
    previous = job.source;
    bytes += static_cast<int64_t>(
        checkpoint.tensors().find(job.source)->second.bytes);
  }
  return bytes;
}

// One conversion, from its options to its report.
class Conversion {
 public:
  explicit Conversion(const ConvertOptions& options) : options_(options) {}

  absl::StatusOr<ConvertReport> Run() {
    absl::Status status = CheckOptions();
    if (!status.ok()) return status;
    absl::StatusOr<ConfigConversion> config =
        ConvertConfig(options_.source, options_.method, options_.num_experts);
    if (!config.ok()) return config.status();
    const absl::StatusOr<Checkpoint> checkpoint = OpenSource();
    if (!checkpoint.ok()) return checkpoint.status();
    const absl::StatusOr<std::vector<TensorJob>> jobs =
        PlanTensors(*checkpoint, *config);
    if (!jobs.ok()) return jobs.status();
    absl::StatusOr<OutputDirectory> directory = OutputDirectory::Create(
        options_.target, {.replace = options_.force, .durable = true});
    if (!directory.ok()) return directory.status();

    report_.quant_method = Name(config->config.quant_method);
    report_.num_experts = config->config.num_experts;
    report_.num_tensors = static_cast<int>(jobs->size());
    status = WriteTensors(*checkpoint, *jobs, *directory);
    if (status.ok()) status = CopyCompanions(*directory);
    // The last but the manifest: a directory without it does not load.
    if (status.ok()) {
      status = directory->WriteFile("config.json", config->json.dump(2) + "\n");
    }
    if (status.ok()) status = WriteManifest(*directory);
    if (status.ok()) status = directory->Commit();
    if (!status.ok()) return status;
    return std::move(report_);
  }

 private:
  absl::Status CheckOptions() const {
    if (options_.max_shard_bytes <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("--max-shard-size is ",
                                                     options_.max_shard_bytes,
                                                     "; it must be positive"));
    }
    return CheckPaths(options_.source, options_.target);
  }

  absl::StatusOr<Checkpoint> OpenSource() const {
    absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options_.source);
    std::error_code ignored;
    if (absl::IsNotFound(checkpoint.status()) &&
        (std::filesystem::exists(options_.source + "/pytorch_model.bin",
                                 ignored) ||
         std::filesystem::exists(
             options_.source + "/pytorch_model.bin.index.json", ignored))) {
      return absl::NotFoundError(absl::StrCat(
          checkpoint.status().message(),
          "; pytorch_model.bin is not read, save it as safetensors first"));
    }
    return checkpoint;
  }

  absl::Status WriteTensors(const Checkpoint& checkpoint,
                            const std::vector<TensorJob>& jobs,
                            const OutputDirectory& directory) {
    const std::vector<TensorSpec> specs = SpecsOf(jobs);
    const std::vector<size_t> shards =
        PlanShards(specs, static_cast<size_t>(options_.max_shard_bytes));
    total_bytes_ = SourceBytes(checkpoint, jobs);
    TensorConverter converter(checkpoint, options_, report_);
    std::span<const TensorJob> rest = jobs;
    for (size_t shard = 0; shard < shards.size(); ++shard) {
      const absl::Status status =
          WriteShard(rest.first(shards[shard]), rest,
                     ShardName(shard, shards.size()), converter, directory);
      if (!status.ok()) return status;
      rest = rest.subspan(shards[shard]);
    }
    if (shards.size() == 1) return absl::OkStatus();
    return directory.WriteFile("model.safetensors.index.json",
                               ShardIndexJson(specs, shards));
  }

  // `rest` begins with `jobs` and goes on with those of later files.
  absl::Status WriteShard(std::span<const TensorJob> jobs,
                          std::span<const TensorJob> rest,
                          const std::string& name, TensorConverter& converter,
                          const OutputDirectory& directory) {
    absl::StatusOr<OutputFile> file = directory.CreateFile(name);
    if (!file.ok()) return file.status();
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(*std::move(file), SpecsOf(jobs));
    if (!writer.ok()) return writer.status();
    for (size_t i = 0; i < jobs.size(); ++i) {
      absl::Status status = converter.Write(jobs[i], *writer);
      if (!status.ok()) return status;
      const bool more =
          i + 1 < rest.size() && rest[i + 1].source == jobs[i].source;
      if (!more && !jobs[i].source.empty()) converter.Finish(jobs[i].source);
      if (!ReportProgress(jobs[i].target.name)) {
        return absl::CancelledError(
            absl::StrCat("interrupted; ", options_.target, " was not written"));
      }
    }
    return writer->Close();
  }

  bool ReportProgress(const std::string& tensor) const {
    return !options_.on_progress ||
           options_.on_progress({report_.source_bytes, total_bytes_, tensor});
  }

  absl::Status CopyCompanions(const OutputDirectory& directory) {
    for (const char* name : kCompanions) {
      const absl::StatusOr<std::string> content = ReadRegularFile(
          absl::StrCat(options_.source, "/", name), kMaxCompanionBytes);
      if (absl::IsNotFound(content.status())) continue;
      if (!content.ok()) return content.status();
      const absl::Status status = directory.WriteFile(name, *content);
      if (!status.ok()) return status;
      if (name == kTokenizer) report_.has_tokenizer = true;
    }
    return absl::OkStatus();
  }

  absl::Status WriteManifest(const OutputDirectory& directory) {
    const absl::StatusOr<std::string> manifest = MakeManifest(directory.path());
    if (!manifest.ok()) return manifest.status();
    const absl::Status status = directory.WriteFile(kManifestName, *manifest);
    std::error_code error;
    for (const auto& entry :
         std::filesystem::directory_iterator(directory.path(), error)) {
      report_.target_bytes += static_cast<int64_t>(entry.file_size(error));
    }
    return status;
  }

  const ConvertOptions& options_;
  ConvertReport report_;
  int64_t total_bytes_ = 0;
};

}  // namespace

absl::StatusOr<ConvertReport> ConvertModel(const ConvertOptions& options) {
  return Conversion(options).Run();
}

}  // namespace binarymos
