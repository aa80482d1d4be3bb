#include "engine/safetensors_writer.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/core/check.h"

namespace binarymos {
namespace {

std::string JsonArray(const Shape& shape) {
  std::string json = "[";
  for (int i = 0; i < shape.rank(); ++i) {
    absl::StrAppend(&json, i == 0 ? "" : ",", shape[i]);
  }
  return json + "]";
}

std::string Header(const std::vector<TensorSpec>& tensors) {
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";
  size_t offset = 0;
  for (const TensorSpec& tensor : tensors) {
    BINARYMOS_CHECK_EQ(offset % SizeOf(tensor.dtype), 0u) << tensor.name;
    absl::StrAppend(
        &json, ",\"", tensor.name, "\":{\"dtype\":\"", Name(tensor.dtype),
        "\",\"shape\":", JsonArray(tensor.shape), ",\"data_offsets\":[", offset,
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

size_t TotalBytes(const std::vector<TensorSpec>& tensors) {
  size_t bytes = 0;
  for (const TensorSpec& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    OutputFile file, const std::vector<TensorSpec>& tensors) {
  const std::string header = Header(tensors);
  const absl::Status status = file.Write(header.data(), header.size());
  if (!status.ok()) return status;
  return SafetensorsWriter(std::move(file), TotalBytes(tensors));
}

absl::Status SafetensorsWriter::Append(const void* data, size_t bytes) {
  BINARYMOS_CHECK_LE(bytes, bytes_left_);
  bytes_left_ -= bytes;
  return file_.Write(data, bytes);
}

absl::Status SafetensorsWriter::Close() {
  BINARYMOS_CHECK_EQ(bytes_left_, 0u);
  return file_.Close();
}

std::vector<size_t> PlanShards(const std::vector<TensorSpec>& tensors,
                               size_t max_bytes) {
  std::vector<size_t> sizes;
  size_t bytes = 0;
  for (const TensorSpec& tensor : tensors) {
    if (sizes.empty() || bytes + tensor.bytes() > max_bytes) {
      sizes.push_back(0);
      bytes = 0;
    }
    ++sizes.back();
    bytes += tensor.bytes();
  }
  return sizes;
}

std::string ShardName(size_t index, size_t count) {
  return count == 1 ? "model.safetensors"
                    : absl::StrFormat("model-%05d-of-%05d.safetensors",
                                      index + 1, count);
}

std::string ShardIndexJson(const std::vector<TensorSpec>& tensors,
                           const std::vector<size_t>& shard_sizes) {
  std::string json =
      absl::StrCat("{\n  \"metadata\": {\"total_size\": ", TotalBytes(tensors),
                   "},\n  \"weight_map\": {");
  size_t next = 0;
  for (size_t shard = 0; shard < shard_sizes.size(); ++shard) {
    const std::string file = ShardName(shard, shard_sizes.size());
    for (size_t i = 0; i < shard_sizes[shard]; ++i, ++next) {
      absl::StrAppend(&json, next == 0 ? "" : ",", "\n    \"",
                      tensors[next].name, "\": \"", file, "\"");
    }
  }
  return json + "\n  }\n}\n";
}

}  // namespace binarymos
