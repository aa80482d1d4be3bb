#include "server/model_registry.h"

#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/fake_engine.h"

namespace binarymos {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<ServedModel> Model(const std::string& name,
                                   int num_blocks = 64) {
  auto engine = std::make_unique<FakeEngine>();
  engine->cache.num_blocks = num_blocks;
  engine->cache.max_model_len = 512;
  SchedulerOptions options;
  options.cache = engine->cache;
  return std::make_unique<ServedModel>(name, std::move(engine), options,
                                       QueueLimits());
}

TEST(ModelRegistryTest, EmptyRegistryIsLoading) {
  ModelRegistry registry;
  EXPECT_EQ(registry.Find("").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(registry.Find("a").status().code(), absl::StatusCode::kUnavailable);
}

TEST(ModelRegistryTest, EmptyNameMeansTheOnlyModel) {
  ModelRegistry registry;
  ServedModel& a = registry.Add(Model("a"));
  EXPECT_EQ(*registry.Find(""), &a);
  EXPECT_EQ(*registry.Find("a"), &a);
  const absl::Status unknown = registry.Find("b").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("\"a\""));

  ServedModel& b = registry.Add(Model("b"));
  EXPECT_EQ(*registry.Find("b"), &b);
  EXPECT_EQ(registry.Find("").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(registry.All().size(), 2u);
}

TEST(ServedModelTest, PositionsAreThoseOfModelAndCache) {
  EXPECT_EQ(Model("a", 64)->max_positions(), 512);
  EXPECT_EQ(Model("a", 8)->max_positions(), 128);
  EXPECT_EQ(Model("a", 8)->max_prompt_bytes(), 128u * 1024);
}

}  // namespace
}  // namespace binarymos
