#include "engine/safetensors_writer.h"

#include "engine/model/checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/temp_dir.h"

namespace binarymos {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::vector<TensorSpec>& Specs() {
  static const std::vector<TensorSpec> specs = {{"a", DType::kF16, {2, 3}},
                                                {"b", DType::kU8, {4}},
                                                {"c", DType::kF16, {1}}};
  return specs;
}

TEST(SafetensorsWriterTest, WritesWhatTheCheckpointReads) {
  const TempDir dir;
  auto file = OutputFile::Create(dir / "model.safetensors", false);
  ASSERT_TRUE(file.ok()) << file.status();
  auto writer = SafetensorsWriter::Create(*std::move(file), Specs());
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string data = "0123456789abABCDxy";
  ASSERT_TRUE(writer->Append(data.data(), 5).ok());
  ASSERT_TRUE(writer->Append(data.data() + 5, 13).ok());
  ASSERT_TRUE(writer->Close().ok());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  const auto b = checkpoint->Find("b");
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(b->dtype, DType::kU8);
  EXPECT_EQ(std::string(static_cast<const char*>(b->data), 4), "ABCD");
  const auto a = checkpoint->Find("a");
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(a->shape, (Shape{2, 3}));
}

TEST(SafetensorsWriterTest, FillsShardsUpToTheirLimit) {
  EXPECT_THAT(PlanShards(Specs(), 100), ElementsAre(3));
  EXPECT_THAT(PlanShards(Specs(), 16), ElementsAre(2, 1));
  EXPECT_THAT(PlanShards(Specs(), 6), ElementsAre(1, 2));
  EXPECT_THAT(PlanShards(Specs(), 1), ElementsAre(1, 1, 1));
  EXPECT_THAT(PlanShards({}, 1), IsEmpty());
}

TEST(SafetensorsWriterTest, NamesShardsAsHuggingFaceDoes) {
  EXPECT_EQ(ShardName(0, 1), "model.safetensors");
  EXPECT_EQ(ShardName(1, 3), "model-00002-of-00003.safetensors");
}

}  // namespace
}  // namespace binarymos
