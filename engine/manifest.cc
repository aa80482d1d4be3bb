#include "engine/manifest.h"

#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <system_error>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "engine/model/bounded_json.h"
#include "engine/model/regular_file.h"

namespace binarymos {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kMaxManifestBytes = 16 << 20;
constexpr size_t kSha256Bytes = 32;
constexpr size_t kChunkBytes = 1 << 20;

// What a manifest says about one file.
struct FileFacts {
  uint64_t bytes = 0;
  std::string sha256;  // lower-case hexadecimal
};

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    BINARYMOS_CHECK(context_ != nullptr);
    BINARYMOS_CHECK(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) ==
                    1);
  }
  void Add(const void* data, size_t bytes) {
    BINARYMOS_CHECK(EVP_DigestUpdate(context_.get(), data, bytes) == 1);
  }
  std::string Hex() {
    std::array<char, kSha256Bytes> digest;
    BINARYMOS_CHECK(
        EVP_DigestFinal_ex(context_.get(),
                           reinterpret_cast<unsigned char*>(digest.data()),
                           nullptr) == 1);
    return absl::BytesToHexString({digest.data(), digest.size()});
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

absl::StatusOr<FileFacts> ReadFacts(const std::string& path) {
  const absl::StatusOr<RegularFile> file = RegularFile::Open(path);
  if (!file.ok()) return file.status();
  Sha256 hash;
  FileFacts facts;
  std::vector<char> chunk(kChunkBytes);
  for (;;) {
    const ssize_t n = read(file->fd(), chunk.data(), chunk.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read", path);
    if (n == 0) break;
    hash.Add(chunk.data(), static_cast<size_t>(n));
    facts.bytes += static_cast<uint64_t>(n);
  }
  facts.sha256 = hash.Hex();
  return facts;
}

// Names of the files that a manifest speaks of.
absl::StatusOr<std::set<std::string>> ListFiles(const std::string& model_dir) {
  std::set<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator it(model_dir, error);
  for (; !error && it != std::filesystem::directory_iterator();
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (name.starts_with('.') || name == kManifestName ||
        it->is_directory(ignored)) {
      continue;
    }
    names.insert(name);
  }
  if (error) return ErrnoStatus(error.value(), "list", model_dir);
  return names;
}

bool IsSha256(const json& value) {
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  return text.size() == 2 * kSha256Bytes &&
         text.find_first_not_of("0123456789abcdef") == text.npos;
}

absl::StatusOr<std::map<std::string, FileFacts>> ParseManifest(
    const std::string& text, const std::string& path) {
  const absl::StatusOr<json> document = ParseBoundedJson(text, path);
  if (!document.ok()) return document.status();
  if (document->value("version", json()) != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected version ", kVersion));
  }
  const json files = document->value("files", json());
  if (!files.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": files: expected an object"));
  }
  std::map<std::string, FileFacts> facts;
  for (const auto& [name, value] : files.items()) {
    const json bytes =
        value.is_object() ? value.value("bytes", json()) : json();
    const json hash =
        value.is_object() ? value.value("sha256", json()) : json();
    if (!bytes.is_number_unsigned() || !IsSha256(hash)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": files: ", json(name).dump(),
          ": expected bytes, an integer, and sha256, 64 hexadecimal digits"));
    }
    facts[name] = {bytes.get<uint64_t>(), hash.get<std::string>()};
  }
  return facts;
}

absl::Status VerifyFile(const std::string& path, const FileFacts& expected) {
  const absl::StatusOr<FileFacts> facts = ReadFacts(path);
  if (!facts.ok()) return facts.status();
  if (facts->bytes != expected.bytes) {
    return absl::DataLossError(absl::StrCat(path, " has ", facts->bytes,
                                            " bytes, expected ", expected.bytes,
                                            " because of ", kManifestName));
  }
  if (facts->sha256 != expected.sha256) {
    return absl::DataLossError(absl::StrCat(
        path, " is damaged or was changed: its SHA-256 is ", facts->sha256,
        ", expected ", expected.sha256, " because of ", kManifestName));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> MakeManifest(const std::string& model_dir) {
  const absl::StatusOr<std::set<std::string>> names = ListFiles(model_dir);
  if (!names.ok()) return names.status();
  json files = json::object();
  for (const std::string& name : *names) {
    const absl::StatusOr<FileFacts> facts =
        ReadFacts(absl::StrCat(model_dir, "/", name));
    if (!facts.ok()) return facts.status();
    files[name] = {{"bytes", facts->bytes}, {"sha256", facts->sha256}};
  }
  const json manifest = {{"version", kVersion}, {"files", std::move(files)}};
  return manifest.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

absl::Status VerifyManifest(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/", kManifestName);
  const absl::StatusOr<std::string> text =
      ReadRegularFile(path, kMaxManifestBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(
        path,
        " does not exist, so nothing can be verified; `binarymos convert`"
        " writes one"));
  }
  if (!text.ok()) return text.status();
  const auto expected = ParseManifest(*text, path);
  if (!expected.ok()) return expected.status();
  const absl::StatusOr<std::set<std::string>> names = ListFiles(model_dir);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (!expected->contains(name)) {
      return absl::DataLossError(absl::StrCat(
          model_dir, "/", name, " is not named in ", kManifestName));
    }
  }
  for (const auto& [name, facts] : *expected) {
    const std::string file = absl::StrCat(model_dir, "/", name);
    if (!names->contains(name)) {
      return absl::DataLossError(absl::StrCat(
          file, " is missing, expected because of ", kManifestName));
    }
    if (auto status = VerifyFile(file, facts); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace binarymos
