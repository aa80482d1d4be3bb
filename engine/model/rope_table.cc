#include "engine/model/rope_table.h"

#include <cmath>
#include <cstddef>

namespace binarymos {

double RopeBase(const LlamaConfig& config, int max_model_len) {
  const RopeScaling& scaling = config.rope_scaling;
  // With two dimensions there is one frequency, 1, whatever the base is.
  if (scaling.kind != RopeScaling::Kind::kDynamic || config.head_dim == 2 ||
      max_model_len <= config.max_position_embeddings) {
    return config.rope_theta;
  }
  const double d = config.head_dim;
  const double stretch =
      static_cast<double>(max_model_len) / config.max_position_embeddings;
  return config.rope_theta *
         std::pow(scaling.factor * stretch - (scaling.factor - 1.0),
                  d / (d - 2.0));
}

RopeAngles ComputeRopeAngles(const LlamaConfig& config, int max_model_len) {
  const int half = config.head_dim / 2;
  const double base = RopeBase(config, max_model_len);
  std::vector<double> frequency(half);
  for (int i = 0; i < half; ++i) {
    frequency[i] = std::pow(base, -2.0 * i / config.head_dim);
  }
  const double position_scale =
      config.rope_scaling.kind == RopeScaling::Kind::kLinear
          ? 1.0 / config.rope_scaling.factor
          : 1.0;

  RopeAngles angles;
  const size_t size = static_cast<size_t>(max_model_len) * half;
  angles.cos.resize(size);
  angles.sin.resize(size);
  for (int position = 0; position < max_model_len; ++position) {
    for (int i = 0; i < half; ++i) {
      const double angle = position * position_scale * frequency[i];
      const size_t at = static_cast<size_t>(position) * half + i;
      angles.cos[at] = static_cast<float>(std::cos(angle));
      angles.sin[at] = static_cast<float>(std::sin(angle));
    }
  }
  return angles;
}

}  // namespace binarymos
