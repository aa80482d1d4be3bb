#include "engine/model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace binarymos {
namespace {

LlamaConfig Config(RopeScaling scaling) {
  LlamaConfig config;
  config.head_dim = 128;
  config.max_position_embeddings = 2048;
  config.rope_theta = 10000.0;
  config.rope_scaling = scaling;
  return config;
}

void ExpectAngle(const RopeAngles& angles, int position, int i, double angle) {
  EXPECT_FLOAT_EQ(angles.cos[position * 64 + i],
                  static_cast<float>(std::cos(angle)));
  EXPECT_FLOAT_EQ(angles.sin[position * 64 + i],
                  static_cast<float>(std::sin(angle)));
}

TEST(RopeTableTest, WithoutScalingAnglesArePositionTimesFrequency) {
  const RopeAngles angles = ComputeRopeAngles(Config({}), 100);
  ASSERT_EQ(angles.cos.size(), 100u * 64);
  ExpectAngle(angles, 0, 5, 0.0);
  ExpectAngle(angles, 99, 0, 99.0);
  ExpectAngle(angles, 99, 32, 99.0 / 100.0);  // 10000^(-1/2)
}

TEST(RopeTableTest, LinearScalingDividesPositions) {
  const RopeAngles plain = ComputeRopeAngles(Config({}), 50);
  const RopeAngles scaled =
      ComputeRopeAngles(Config({RopeScaling::Kind::kLinear, 4.0}), 200);
  for (int position = 0; position < 50; ++position) {
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(scaled.cos[4 * position * 64 + i],
                plain.cos[position * 64 + i]);
    }
  }
}

TEST(RopeTableTest, DynamicScalingRaisesTheBaseOfLongModelsOnly) {
  const LlamaConfig config = Config({RopeScaling::Kind::kDynamic, 2.0});
  EXPECT_EQ(RopeBase(config, 2048), 10000.0);
  EXPECT_EQ(RopeBase(config, 100), 10000.0);
  // factor 2, L / max = 3: 2 * 3 - 1 = 5.
  const double base = 10000.0 * std::pow(5.0, 128.0 / 126.0);
  EXPECT_DOUBLE_EQ(RopeBase(config, 6144), base);
  const RopeAngles angles = ComputeRopeAngles(config, 6144);
  ExpectAngle(angles, 6000, 16, 6000.0 * std::pow(base, -0.25));
}

TEST(RopeTableTest, LongPositionsKeepTheirPrecision) {
  const RopeAngles angles = ComputeRopeAngles(Config({}), 30001);
  ExpectAngle(angles, 30000, 0, 30000.0);
  ExpectAngle(angles, 30000, 32, 300.0);
}

}  // namespace
}  // namespace binarymos
