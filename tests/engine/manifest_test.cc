#include "engine/manifest.h"

#include <filesystem>
#include <fstream>

#include "engine/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/temp_dir.h"
#include "tests/engine/test_model.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    dir_.Write("config.json", "{}");
    dir_.Write("model.safetensors", "abc");
    dir_.Write(".hidden", "is not part of the model");
    WriteManifest();
  }

  void WriteManifest() {
    const auto manifest = MakeManifest(dir_.path());
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    dir_.Write(kManifestName, *manifest);
  }

  void ExpectError(absl::StatusCode code, const std::string& message) {
    const absl::Status status = VerifyManifest(dir_.path());
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  TempDir dir_;
};

TEST_F(ManifestTest, HoldsTheSha256OfEveryFile) {
  const auto manifest = MakeManifest(dir_.path());
  ASSERT_TRUE(manifest.ok());
  // sha256sum of "abc", FIPS 180-2.
  EXPECT_THAT(*manifest,
              HasSubstr("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff"
                        "61f20015ad"));
  EXPECT_THAT(*manifest, HasSubstr("\"bytes\": 3"));
  EXPECT_EQ(manifest->find(".hidden"), manifest->npos);
  EXPECT_EQ(manifest->find(kManifestName), manifest->npos);
}

TEST_F(ManifestTest, AccordsWithWhatItWasMadeOf) {
  const absl::Status status = VerifyManifest(dir_.path());
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ManifestTest, NamesTheFileThatWasChanged) {
  dir_.Write("model.safetensors", "abd");
  ExpectError(absl::StatusCode::kDataLoss,
              "model.safetensors is damaged or was changed");
}

TEST_F(ManifestTest, NamesTheFileThatWasCutShort) {
  dir_.Write("model.safetensors", "ab");
  ExpectError(absl::StatusCode::kDataLoss,
              "model.safetensors has 2 bytes, expected 3");
}

TEST_F(ManifestTest, NamesTheFileThatIsMissing) {
  std::filesystem::remove(dir_ / "config.json");
  ExpectError(absl::StatusCode::kDataLoss, "config.json is missing");
}

TEST_F(ManifestTest, NamesTheFileThatWasAdded) {
  dir_.Write("generation_config.json", "{}");
  ExpectError(absl::StatusCode::kDataLoss,
              "generation_config.json is not named");
}

TEST_F(ManifestTest, SaysThatThereIsNoManifest) {
  std::filesystem::remove(dir_ / kManifestName);
  ExpectError(absl::StatusCode::kNotFound, "manifest.json does not exist");
}

TEST_F(ManifestTest, RefusesWhatIsNotAManifest) {
  for (const char* text :
       {"", "[]", "{}", R"({"version": 2, "files": {}})", R"({"version": 1})",
        R"({"version": 1, "files": []})",
        R"({"version": 1, "files": {"a": 1}})",
        R"({"version": 1, "files": {"a": {"bytes": -1, "sha256": ""}}})",
        R"({"version": 1, "files": {"a": {"bytes": 1, "sha256": "00"}}})"}) {
    dir_.Write(kManifestName, text);
    ExpectError(absl::StatusCode::kInvalidArgument, kManifestName);
  }
}

TEST_F(ManifestTest, NeverLeavesTheDirectory) {
  dir_.Write(kManifestName,
             R"({"version": 1, "files": {"../x": {"bytes": 1, "sha256":
             "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
             }}})");
  std::filesystem::remove(dir_ / "config.json");
  std::filesystem::remove(dir_ / "model.safetensors");
  ExpectError(absl::StatusCode::kDataLoss, "../x is missing");
}

TEST(EngineVerifyTest, LoadsOnlyWhatTheManifestDescribes) {
  const TestModelDir dir(SmallShape(), 1);
  EngineOptions options;
  options.model_dir = dir.path();
  options.max_num_batched_tokens = 64;
  options.num_threads = 1;
  options.verify = true;
  EXPECT_TRUE(absl::IsNotFound(Engine::Load(options).status()));
  const auto manifest = MakeManifest(dir.path());
  ASSERT_TRUE(manifest.ok());
  std::ofstream(dir.path() + "/manifest.json") << *manifest;
  EXPECT_TRUE(Engine::Load(options).ok());
  std::ofstream(dir.path() + "/generation_config.json") << "{}";
  const absl::Status status = Engine::Load(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  options.verify = false;
  EXPECT_TRUE(Engine::Load(options).ok());
}

// Written by train/binarymos_train, not by this program.
TEST(TalesManifestTest, DescribesTheModelInTheRepository) {
  const absl::Status status = VerifyManifest(BINARYMOS_TALES);
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace binarymos
