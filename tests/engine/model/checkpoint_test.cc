#include "engine/model/checkpoint.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_directory.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

Checkpoint OpenOrDie(const TempDir& dir) {
  auto checkpoint = Checkpoint::Open(dir.path());
  BINARYMOS_CHECK(checkpoint.ok()) << checkpoint.status().message();
  return *std::move(checkpoint);
}

TEST(CheckpointTest, FindsTensorsWithTheirBytes) {
  const TempDir dir;
  dir.Write("model.safetensors", Serialize({{"a", "F16", {2, 3}},
                                            {"b", "U8", {4}},
                                            {"c", "F32", {1, 1, 1, 1}},
                                            {"scalar", "I32", {}}}));
  const Checkpoint checkpoint = OpenOrDie(dir);
  const auto b = checkpoint.Find("b");
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(b->dtype, DType::kU8);
  EXPECT_EQ(b->shape, Shape({4}));
  EXPECT_THAT(b->span<uint8_t>(), ::testing::ElementsAre(12, 13, 14, 15));
  EXPECT_EQ(checkpoint.Find("a")->shape, Shape({2, 3}));
  EXPECT_EQ(checkpoint.Find("c")->shape, Shape({1, 1, 1, 1}));
  EXPECT_EQ(checkpoint.Find("scalar")->shape, Shape());
  EXPECT_TRUE(checkpoint.Contains("a"));
  EXPECT_FALSE(checkpoint.Contains("d"));
  EXPECT_EQ(checkpoint.tensors().size(), 4u);
  EXPECT_EQ(checkpoint.FileOf("a"), dir / "model.safetensors");
  EXPECT_EQ(checkpoint.FileOf("d"), dir.path());
}

TEST(CheckpointTest, NamesATensorThatIsNotThere) {
  const TempDir dir;
  dir.Write("model.safetensors", Serialize({{"a", "U8", {1}}}));
  const auto missing = OpenOrDie(dir).Find("b");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()),
              HasSubstr("tensor \"b\" is missing"));
}

TEST(CheckpointTest, RefusesToViewADTypeThatWeDoNotHave) {
  const TempDir dir;
  const std::string header =
      R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})";
  dir.Write("model.safetensors",
            SafetensorsFile(header + std::string(-header.size() % 8, ' '),
                            std::string(8, '\0')));
  const auto tensor = OpenOrDie(dir).Find("a");
  EXPECT_EQ(tensor.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tensor.status().message()),
              HasSubstr("tensor \"a\" has dtype I64, expected F16"));
}

TEST(CheckpointTest, AcceptsTensorsWithoutElements) {
  const TempDir dir;
  dir.Write("model.safetensors",
            Serialize({{"a", "U8", {0, 5}}, {"b", "U8", {1}}}));
  const auto tensor = OpenOrDie(dir).Find("a");
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->bytes(), 0u);
}

TEST(CheckpointTest, AcceptsAFileWithoutTensors) {
  const TempDir dir;
  dir.Write("model.safetensors", SafetensorsFile("{}", ""));
  EXPECT_TRUE(OpenOrDie(dir).tensors().empty());
}

TEST(CheckpointTest, PrefersTheSingleFileToAnIndex) {
  const TempDir dir;
  dir.Write("model.safetensors", Serialize({{"a", "U8", {1}}}));
  dir.Write("model.safetensors.index.json", "not JSON");
  EXPECT_EQ(OpenOrDie(dir).files().size(), 1u);
}

TEST(CheckpointTest, ReadsShards) {
  const TempDir dir;
  dir.Write("1.safetensors", Serialize({{"a", "U8", {3}}}));
  dir.Write("2.safetensors", Serialize({{"b", "U8", {2}}}));
  dir.Write("model.safetensors.index.json",
            R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  const Checkpoint checkpoint = OpenOrDie(dir);
  EXPECT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.FileOf("b"), dir / "2.safetensors");
  EXPECT_EQ(checkpoint.Find("a")->bytes(), 3u);
}

TEST(CheckpointTest, KeepsViewsValidWhenMoved) {
  const TempDir dir;
  dir.Write("model.safetensors", Serialize({{"a", "U8", {3}}}));
  Checkpoint first = OpenOrDie(dir);
  const ConstTensorView view = *first.Find("a");
  const Checkpoint second = std::move(first);
  EXPECT_EQ(view.span<uint8_t>()[2], 2);
  EXPECT_EQ(second.Find("a")->data, view.data);
}

TEST(CheckpointTest, ReleasedPagesReadTheSame) {
  constexpr int64_t kBytes = 3 << 20;
  const TempDir dir;
  dir.Write("model.safetensors",
            Serialize({{"a", "U8", {100}}, {"b", "U8", {kBytes}}}));
  const Checkpoint checkpoint = OpenOrDie(dir);
  for (const char* name : {"a", "b"}) {
    const ConstTensorView view = *checkpoint.Find(name);
    const auto bytes = view.span<uint8_t>();
    const std::vector<uint8_t> before(bytes.begin(), bytes.end());
    checkpoint.Release(view);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), bytes.begin()));
  }
  checkpoint.Release({});
}

}  // namespace
}  // namespace binarymos
