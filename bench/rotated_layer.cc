#include "bench/rotated_layer.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/random_halves.h"

namespace binarymos {
namespace {

constexpr int kExperts = 4;

ConstTensorView View(const std::vector<uint16_t>& half, Shape shape) {
  return {half.data(), DType::kF16, shape};
}

// Random weights of one layer, in the layout of the model directory.
class RandomLayer {
 public:
  RandomLayer(const std::string& kind, LayerShape shape) {
    tensors_.in_features = shape.in;
    tensors_.out_features = shape.out;
    if (kind == "float16") {
      tensors_.kind = LinearKind::kFloat16;
      weight_ = RandomHalves(shape.in * shape.out, 0.02f, 1);
      tensors_.weight = View(weight_, {shape.out, shape.in});
      return;
    }
    const int experts = kind == "onebit" ? 1 : kExperts;
    tensors_.num_experts = experts;
    std::mt19937 random(1);
    sign_.resize(shape.out * shape.in / 8);
    for (uint8_t& byte : sign_) byte = static_cast<uint8_t>(random());
    tensors_.sign = {sign_.data(), DType::kU8, {shape.out, shape.in / 8}};
    in_scale_ = RandomHalves(experts * shape.in, 0.5f, 2);
    tensors_.in_scale = View(in_scale_, {experts, shape.in});
    out_scale_ = RandomHalves(experts * shape.out, 0.02f, 3);
    tensors_.out_scale = View(out_scale_, {experts, shape.out});
    if (experts == 1) return;
    gate_ = RandomHalves(experts * shape.in, 0.02f, 4);
    tensors_.gate = View(gate_, {experts, shape.in});
  }

  const LinearTensors& tensors() const { return tensors_; }

 private:
  LinearTensors tensors_;
  std::vector<uint8_t> sign_;
  std::vector<uint16_t> weight_, gate_, in_scale_, out_scale_;
};

}  // namespace

absl::Status CheckLayerKind(const std::string& kind) {
  if (kind == "binarymos" || kind == "onebit" || kind == "float16") {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown kind \"", kind, "\": binarymos, onebit or float16"));
}

absl::StatusOr<std::shared_ptr<RotatedLayer>> RotatedLayer::Create(
    Backend& backend, const std::string& kind, LayerShape shape) {
  const RandomLayer layer(kind, shape);
  auto rotated = std::make_shared<RotatedLayer>();
  size_t bytes = 0;
  while (bytes < kRotatedBytes) {
    auto packed = backend.Pack(layer.tensors());
    if (!packed.ok()) return packed.status();
    bytes += (*packed)->bytes();
    rotated->copies_.push_back(*std::move(packed));
  }
  return rotated;
}

absl::StatusOr<LayerActivations> LayerActivations::Create(Backend& backend,
                                                          LayerShape shape,
                                                          int tokens) {
  std::vector<float> host(tokens * shape.in);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float& each : host) each = normal(random);
  auto x = backend.Upload({host.data(), DType::kF32, {tokens, shape.in}});
  if (!x.ok()) return x.status();
  auto y = backend.Allocate(DType::kF32, {tokens, shape.out});
  if (!y.ok()) return y.status();
  return LayerActivations{*std::move(x), *std::move(y)};
}

}  // namespace binarymos
