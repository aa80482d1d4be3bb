#include "engine/model/checkpoint.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/bounded_json.h"
#include "engine/model/regular_file.h"

namespace binarymos {

// A whole file in memory, read-only.
class Checkpoint::Mapping {
 public:
  static absl::StatusOr<std::unique_ptr<Mapping>> Map(const std::string& path) {
    const absl::StatusOr<RegularFile> file = RegularFile::Open(path);
    if (!file.ok()) return file.status();
    if (file->size() == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is empty, expected a safetensors file"));
    }
    void* data =
        mmap(nullptr, file->size(), PROT_READ, MAP_PRIVATE, file->fd(), 0);
    if (data == MAP_FAILED) return ErrnoStatus(errno, "map", path);
    return std::unique_ptr<Mapping>(
        new Mapping(static_cast<char*>(data), file->size()));
  }

  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { munmap(data_, size_); }

  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  Mapping(char* data, size_t size) : data_(data), size_(size) {}

  char* data_;
  size_t size_;
};

namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors are read in place");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxShards = 1000;
constexpr size_t kMaxNameLength = 512;

struct DTypeInfo {
  const char* name;
  size_t size;
  std::optional<DType> dtype;
};
constexpr std::array<DTypeInfo, 15> kDTypes = {{
    {"BOOL", 1, std::nullopt},
    {"U8", 1, DType::kU8},
    {"I8", 1, std::nullopt},
    {"F8_E4M3", 1, std::nullopt},
    {"F8_E5M2", 1, std::nullopt},
    {"U16", 2, std::nullopt},
    {"I16", 2, std::nullopt},
    {"F16", 2, DType::kF16},
    {"BF16", 2, DType::kBF16},
    {"U32", 4, std::nullopt},
    {"I32", 4, DType::kI32},
    {"F32", 4, DType::kF32},
    {"U64", 8, std::nullopt},
    {"I64", 8, std::nullopt},
    {"F64", 8, std::nullopt},
}};

const DTypeInfo* FindDType(const std::string& name) {
  const auto* it =
      std::find_if(kDTypes.begin(), kDTypes.end(),
                   [&](const DTypeInfo& info) { return name == info.name; });
  return it == kDTypes.end() ? nullptr : it;
}

// A tensor name as it may appear in a message.
std::string Quote(const std::string& name) {
  return json(name.substr(0, kMaxNameLength))
      .dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
}

// One entry of a header.
struct HeaderTensor {
  std::string name;
  std::string dtype;
  Shape shape;
  size_t element_size = 0;
  uint64_t begin = 0;  // relative to the end of the header
  uint64_t end = 0;
};

// Everything that can be said about one tensor without the others.
class TensorParser {
 public:
  TensorParser(const std::string& file, uint64_t data_size)
      : file_(file), data_size_(data_size) {}

  absl::StatusOr<HeaderTensor> Parse(const std::string& name,
                                     const json& value) const {
    HeaderTensor tensor{.name = name};
    if (name.empty() || name.size() > kMaxNameLength) {
      return Error(name, "expected a name of 1 to ", kMaxNameLength, " bytes");
    }
    if (!value.is_object()) return Error(name, "expected an object");
    for (const auto& [key, unused] : value.items()) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        return Error(name, "unknown key ", Quote(key),
                     ", expected dtype, shape and data_offsets");
      }
    }
    absl::Status status = ParseDType(value, &tensor);
    if (status.ok()) status = ParseShape(value, &tensor);
    if (status.ok()) status = ParseOffsets(value, &tensor);
    if (!status.ok()) return status;
    return tensor;
  }

 private:
  template <typename... Parts>
  absl::Status Error(const std::string& name, const Parts&... parts) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": tensor ", Quote(name), ": ", parts...));
  }

  absl::Status ParseDType(const json& value, HeaderTensor* tensor) const {
    const auto it = value.find("dtype");
    if (it == value.end() || !it->is_string()) {
      return Error(tensor->name, "expected a string as dtype");
    }
    tensor->dtype = it->get<std::string>();
    const DTypeInfo* info = FindDType(tensor->dtype);
    if (info == nullptr) {
      return Error(tensor->name, "unknown dtype ", Quote(tensor->dtype),
                   ", expected one of F16, U8, BF16, F32 or another dtype of "
                   "the safetensors format");
    }
    tensor->element_size = info->size;
    return absl::OkStatus();
  }

  absl::Status ParseShape(const json& value, HeaderTensor* tensor) const {
    const auto it = value.find("shape");
    if (it == value.end() || !it->is_array()) {
      return Error(tensor->name, "expected an array as shape");
    }
    if (it->size() > Shape::kMaxRank) {
      return Error(tensor->name, "shape has ", it->size(),
                   " dimensions, expected at most ", Shape::kMaxRank);
    }
    std::array<int64_t, Shape::kMaxRank> dims{};
    auto bytes = static_cast<int64_t>(tensor->element_size);
    for (size_t i = 0; i < it->size(); ++i) {
      const json& dim = (*it)[i];
      if (!dim.is_number_unsigned() ||
          dim.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        return Error(tensor->name, "shape[", i,
                     "]: expected an integer from 0 to 2^63 - 1");
      }
      dims[i] = dim.get<int64_t>();
      if (__builtin_mul_overflow(bytes, dims[i], &bytes)) {
        return Error(tensor->name, "the shape's size overflows 64 bits");
      }
    }
    switch (it->size()) {
      case 0:
        break;
      case 1:
        tensor->shape = Shape{dims[0]};
        break;
      case 2:
        tensor->shape = Shape{dims[0], dims[1]};
        break;
      case 3:
        tensor->shape = Shape{dims[0], dims[1], dims[2]};
        break;
      default:
        tensor->shape = Shape{dims[0], dims[1], dims[2], dims[3]};
    }
    tensor->end = static_cast<uint64_t>(bytes);  // until ParseOffsets
    return absl::OkStatus();
  }

  absl::Status ParseOffsets(const json& value, HeaderTensor* tensor) const {
    const uint64_t expected_bytes = tensor->end;
    const auto it = value.find("data_offsets");
    if (it == value.end() || !it->is_array() || it->size() != 2 ||
        !(*it)[0].is_number_unsigned() || !(*it)[1].is_number_unsigned()) {
      return Error(tensor->name,
                   "expected two integers of at least 0 as data_offsets");
    }
    tensor->begin = (*it)[0].get<uint64_t>();
    tensor->end = (*it)[1].get<uint64_t>();
    if (tensor->begin > tensor->end) {
      return Error(tensor->name, "data_offsets ", tensor->begin, " to ",
                   tensor->end, " run backwards");
    }
    if (tensor->end > data_size_) {
      return Error(tensor->name, "data_offsets ", tensor->begin, " to ",
                   tensor->end, " leave the file, which has ", data_size_,
                   " bytes of data");
    }
    if (tensor->end - tensor->begin != expected_bytes) {
      return Error(tensor->name, "data_offsets hold ",
                   tensor->end - tensor->begin, " bytes, expected ",
                   expected_bytes, " for ", tensor->dtype, " ",
                   tensor->shape.ToString());
    }
    return absl::OkStatus();
  }

  const std::string& file_;
  const uint64_t data_size_;
};

// The tensors must follow each other and fill the data exactly, each at a
// multiple of its element's size. Sorts `tensors` by offset.
absl::Status CheckLayout(const std::string& file, uint64_t data_begin,
                         uint64_t data_size,
                         std::vector<HeaderTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(),
            [](const HeaderTensor& a, const HeaderTensor& b) {
              return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
            });
  uint64_t covered = 0;
  std::string previous = "the header";
  for (const HeaderTensor& tensor : tensors) {
    if (tensor.begin != covered) {
      const bool overlap = tensor.begin < covered;
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": tensor ", Quote(tensor.name), " begins at ", tensor.begin,
          ", expected ", covered, ": it ",
          overlap ? "overlaps " : "leaves a hole after ", previous));
    }
    if ((data_begin + tensor.begin) % tensor.element_size != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": tensor ", Quote(tensor.name), " begins at byte ",
          data_begin + tensor.begin, " of the file, expected a multiple of ",
          tensor.element_size, " for ", tensor.dtype));
    }
    covered = tensor.end;
    previous = Quote(tensor.name);
  }
  if (covered != data_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the tensors end at ", covered, " of ", data_size,
                     " bytes of data, expected them to fill the file"));
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const std::string& file, const json& metadata) {
  if (metadata.is_object() &&
      std::all_of(metadata.begin(), metadata.end(),
                  [](const json& value) { return value.is_string(); })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": __metadata__: expected an object of strings"));
}

// Length of the JSON header of the file that is mapped at `data`.
absl::StatusOr<uint64_t> HeaderLength(const std::string& file, const char* data,
                                      size_t size) {
  uint64_t length = 0;
  if (size < sizeof(length)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, " has ", size,
                     " bytes, expected a safetensors header of 8 or more"));
  }
  std::memcpy(&length, data, sizeof(length));
  if (length > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": header length is ", length, ", expected at most ",
                     kMaxHeaderBytes));
  }
  if (length > size - sizeof(length)) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": header length is ", length, ", but only ",
        size - sizeof(length), " bytes follow: the file is truncated"));
  }
  if (length == 0 || data[sizeof(length)] != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the header does not begin with '{'"));
  }
  return length;
}

// The checked header of the file that is mapped at `data`, by offset.
// `data_begin` receives where the tensors' bytes begin.
absl::StatusOr<std::vector<HeaderTensor>> ParseHeader(const std::string& file,
                                                      const char* data,
                                                      size_t size,
                                                      size_t* data_begin) {
  const absl::StatusOr<uint64_t> length = HeaderLength(file, data, size);
  if (!length.ok()) return length.status();
  *data_begin = sizeof(uint64_t) + *length;
  const absl::StatusOr<json> header =
      ParseBoundedJson({data + sizeof(uint64_t), *length}, file + ": header");
  if (!header.ok()) return header.status();
  const TensorParser parser(file, size - *data_begin);
  std::vector<HeaderTensor> tensors;
  for (const auto& [name, value] : header->items()) {
    if (name == "__metadata__") {
      if (auto status = CheckMetadata(file, value); !status.ok()) return status;
      continue;
    }
    absl::StatusOr<HeaderTensor> tensor = parser.Parse(name, value);
    if (!tensor.ok()) return tensor.status();
    tensors.push_back(*std::move(tensor));
  }
  const absl::Status status =
      CheckLayout(file, *data_begin, size - *data_begin, tensors);
  if (!status.ok()) return status;
  return tensors;
}

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == name.npos && name.find('\0') == name.npos;
}

// tensor → shard, as the index of a sharded checkpoint says.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(
    const std::string& path) {
  const absl::StatusOr<std::string> text =
      ReadRegularFile(path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<json> document = ParseBoundedJson(*text, path);
  if (!document.ok()) return document.status();
  const auto map = document->find("weight_map");
  if (map == document->end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": weight_map: expected an object of tensor names and files"));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get<std::string>())) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": weight_map: tensor ", Quote(name),
          ": expected a plain file name in the same directory, without '/'"));
    }
    shards[name] = file.get<std::string>();
  }
  return shards;
}

}  // namespace

Checkpoint::Checkpoint(std::string model_dir)
    : model_dir_(std::move(model_dir)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

absl::Status Checkpoint::AddFile(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Mapping>> mapping = Mapping::Map(path);
  if (!mapping.ok()) return mapping.status();
  size_t data_begin = 0;
  const char* data = (*mapping)->data();
  absl::StatusOr<std::vector<HeaderTensor>> header =
      ParseHeader(path, data, (*mapping)->size(), &data_begin);
  if (!header.ok()) return header.status();
  const int file = static_cast<int>(files_.size());
  files_.push_back(path);
  mappings_.push_back(*std::move(mapping));
  for (HeaderTensor& tensor : *header) {
    const auto [it, inserted] = tensors_.try_emplace(
        tensor.name,
        Entry{.dtype = std::move(tensor.dtype),
              .shape = tensor.shape,
              .bytes = static_cast<size_t>(tensor.end - tensor.begin),
              .data = data + data_begin + tensor.begin,
              .file = file});
    if (!inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quote(tensor.name), " is also in ",
                       files_[it->second.file]));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddShards(const std::string& index_path) {
  const absl::StatusOr<std::map<std::string, std::string>> index =
      ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::set<std::string> shards;
  for (const auto& [name, shard] : *index) shards.insert(shard);
  if (shards.size() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": weight_map names ", shards.size(),
                     " files, expected at most ", kMaxShards));
  }
  for (const std::string& shard : shards) {
    const absl::Status status = AddFile(absl::StrCat(model_dir_, "/", shard));
    if (!status.ok()) return status;
  }
  for (const auto& [name, shard] : *index) {
    const std::string path = absl::StrCat(model_dir_, "/", shard);
    const auto it = tensors_.find(name);
    if (it == tensors_.end() || files_[it->second.file] != path) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quote(name),
                       " is missing, expected because of ", index_path));
    }
  }
  for (const auto& [name, entry] : tensors_) {
    if (!index->contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(files_[entry.file], ": tensor ", Quote(name),
                       " is not named in ", index_path));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& model_dir) {
  Checkpoint checkpoint(model_dir);
  const std::string single = model_dir + "/model.safetensors";
  absl::Status status = checkpoint.AddFile(single);
  if (absl::IsNotFound(status)) {
    const std::string index = single + ".index.json";
    if (access(index.c_str(), F_OK) != 0) {
      return absl::NotFoundError(
          absl::StrCat(model_dir,
                       " has neither model.safetensors nor "
                       "model.safetensors.index.json"));
    }
    status = checkpoint.AddShards(index);
  }
  if (!status.ok()) return status;
  return checkpoint;
}

absl::StatusOr<ConstTensorView> Checkpoint::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(
        model_dir_, ": tensor ", Quote(std::string(name)), " is missing"));
  }
  const Entry& entry = it->second;
  const std::optional<DType> dtype = FindDType(entry.dtype)->dtype;
  if (!dtype.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        files_[entry.file], ": tensor ", Quote(it->first), " has dtype ",
        entry.dtype, ", expected F16, BF16, F32, U8 or I32"));
  }
  return ConstTensorView{entry.data, *dtype, entry.shape, Device::kHost};
}

bool Checkpoint::Contains(std::string_view name) const {
  return tensors_.find(name) != tensors_.end();
}

void Checkpoint::Release(const ConstTensorView& tensor) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  const uintptr_t first = (address + page - 1) / page * page;
  const uintptr_t last = (address + tensor.bytes()) / page * page;
  if (!tensor || first >= last) return;
  // Advice: if it is not taken, that costs memory and nothing else.
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

const std::string& Checkpoint::FileOf(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? model_dir_ : files_[it->second.file];
}

}  // namespace binarymos
