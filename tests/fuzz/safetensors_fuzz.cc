// model.safetensors, or, where the input starts with '{', the index of shards.
#include <cstring>
#include <string>

#include "engine/model/checkpoint.h"
#include "tests/fuzz/fuzz_directory.h"

namespace binarymos {
namespace {

// One tensor, "a", of four bytes.
std::string Shard() {
  std::string header = R"({"a":{"dtype":"F16","shape":[2],)"
                       R"("data_offsets":[0,4]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + std::string(4, '\1');
}

const FuzzDirectory& Directory() {
  static const FuzzDirectory* const directory = [] {
    auto* made = new FuzzDirectory;
    atexit([] { Directory().~FuzzDirectory(); });
    const std::string shard = Shard();
    made->Write("shard.safetensors",
                reinterpret_cast<const uint8_t*>(shard.data()), shard.size());
    return made;
  }();
  return *directory;
}

// Every tensor that was accepted can be read from its first to its last byte.
void ReadEverything(const Checkpoint& checkpoint) {
  volatile uint8_t sink = 0;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    BINARYMOS_CHECK(checkpoint.Contains(name));
    const auto* bytes = static_cast<const uint8_t*>(entry.data);
    for (size_t i = 0; i < entry.bytes; ++i) {
      sink = sink ^ bytes[i];  // NOLINT: the read is the point
    }
    auto view = checkpoint.Find(name);
    if (view.ok()) checkpoint.Release(*view);
  }
}

}  // namespace
}  // namespace binarymos

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using binarymos::Checkpoint;
  constexpr const char* kIndex = "model.safetensors.index.json";
  constexpr const char* kFile = "model.safetensors";
  const auto& directory = binarymos::Directory();
  const bool is_index = size > 0 && data[0] == '{';
  directory.Remove(is_index ? kFile : kIndex);
  directory.Write(is_index ? kIndex : kFile, data, size);
  auto checkpoint = Checkpoint::Open(directory.path());
  if (checkpoint.ok()) binarymos::ReadEverything(*checkpoint);
  return 0;
}
