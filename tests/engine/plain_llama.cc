#include "tests/engine/plain_llama.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/check.h"
#include "engine/core/float16.h"
#include "engine/model/checkpoint.h"
#include "engine/model/llama_config.h"

namespace binarymos {
namespace {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // one row per token

class PlainLlama {
 public:
  PlainLlama(LlamaConfig config, Checkpoint checkpoint, int max_model_len)
      : config_(std::move(config)),
        checkpoint_(std::move(checkpoint)),
        max_model_len_(max_model_len) {}

  Matrix Logits(const std::vector<TokenId>& tokens) const {
    const std::string embed = "model.embed_tokens.weight";
    const Matrix table = Rows(embed);
    Matrix h;
    for (TokenId token : tokens) h.push_back(table[token]);
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      const std::string prefix = absl::StrCat("model.layers.", layer, ".");
      const Matrix a = Norm(h, prefix + "input_layernorm.weight");
      Add(h, Linear(Attention(a, prefix + "self_attn."),
                    prefix + "self_attn.o_proj"));
      const Matrix b = Norm(h, prefix + "post_attention_layernorm.weight");
      Add(h, Mlp(b, prefix + "mlp."));
    }
    const Matrix last = Norm(h, "model.norm.weight");
    return Product(
        last, config_.tie_word_embeddings ? table : Rows("lm_head.weight"));
  }

 private:
  ConstTensorView Tensor(const std::string& name) const {
    const auto tensor = checkpoint_.Find(name);
    BINARYMOS_CHECK(tensor.ok()) << tensor.status().ToString();
    return *tensor;
  }
  Vector Values(const std::string& name) const {
    Vector values;
    for (uint16_t half : Tensor(name).span<uint16_t>()) {
      values.push_back(HalfToFloat(half));
    }
    return values;
  }
  Matrix Rows(const std::string& name) const {
    const Vector values = Values(name);
    const auto width = static_cast<ptrdiff_t>(Tensor(name).shape[1]);
    Matrix rows;
    for (auto at = values.begin(); at != values.end(); at += width) {
      rows.emplace_back(at, at + width);
    }
    return rows;
  }

  static double Dot(const Vector& a, const Vector& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  static void Add(Matrix& to, const Matrix& from) {
    for (size_t t = 0; t < to.size(); ++t) {
      for (size_t i = 0; i < to[t].size(); ++i) to[t][i] += from[t][i];
    }
  }
  static Matrix Product(const Matrix& x, const Matrix& weight) {
    Matrix y;
    for (const Vector& row : x) {
      y.emplace_back();
      for (const Vector& w : weight) y.back().push_back(Dot(row, w));
    }
    return y;
  }

  Matrix Norm(const Matrix& x, const std::string& name) const {
    const Vector weight = Values(name);
    Matrix y = x;
    for (Vector& row : y) {
      const double mean = Dot(row, row) / static_cast<double>(row.size());
      for (size_t i = 0; i < row.size(); ++i) {
        row[i] *= weight[i] / std::sqrt(mean + config_.rms_norm_eps);
      }
    }
    return y;
  }

  Matrix Linear(const Matrix& x, const std::string& name) const {
    Matrix y = config_.quant_method == QuantMethod::kFloat16
                   ? Product(x, Rows(name + ".weight"))
                   : BinaryMos(x, name);
    if (checkpoint_.Contains(name + ".bias")) {
      Add(y, Matrix(y.size(), Values(name + ".bias")));
    }
    return y;
  }

  // y = ((x ⊙ s_in) sign(W)ᵀ) ⊙ s_out with s = softmax(x gateᵀ) scales.
  Matrix BinaryMos(const Matrix& x, const std::string& name) const {
    const Matrix in_scale = Rows(name + ".in_scale");
    const Matrix out_scale = Rows(name + ".out_scale");
    const ConstTensorView sign = Tensor(name + ".sign");
    const auto bytes = sign.span<uint8_t>();
    const auto row_bytes = static_cast<size_t>(sign.shape[1]);
    Matrix weight(out_scale[0].size(), Vector(in_scale[0].size()));
    for (size_t o = 0; o < weight.size(); ++o) {
      for (size_t i = 0; i < weight[o].size(); ++i) {
        const bool plus = (bytes[o * row_bytes + i / 8] >> (i % 8) & 1) != 0;
        weight[o][i] = plus ? 1.0 : -1.0;
      }
    }
    Matrix scaled;
    Matrix s_out;
    for (const Vector& row : x) {
      const Vector g = Gates(row, name);
      scaled.push_back(Mix(g, in_scale));
      for (size_t i = 0; i < row.size(); ++i) scaled.back()[i] *= row[i];
      s_out.push_back(Mix(g, out_scale));
    }
    Matrix y = Product(scaled, weight);
    for (size_t t = 0; t < y.size(); ++t) {
      for (size_t o = 0; o < y[t].size(); ++o) y[t][o] *= s_out[t][o];
    }
    return y;
  }
  Vector Gates(const Vector& x, const std::string& name) const {
    if (!checkpoint_.Contains(name + ".gate")) return {1.0};
    Vector g;
    double sum = 0.0;
    for (const Vector& row : Rows(name + ".gate")) {
      g.push_back(std::exp(Dot(x, row)));
      sum += g.back();
    }
    for (double& value : g) value /= sum;
    return g;
  }
  static Vector Mix(const Vector& g, const Matrix& scales) {
    Vector mixed(scales[0].size());
    for (size_t e = 0; e < g.size(); ++e) {
      for (size_t i = 0; i < mixed.size(); ++i) mixed[i] += g[e] * scales[e][i];
    }
    return mixed;
  }

  // (a + i b) e^(i angle) for the pairs (d, d + head_dim / 2).
  void Rotate(Matrix& x) const {
    const int d = config_.head_dim;
    const RopeScaling& scaling = config_.rope_scaling;
    double base = config_.rope_theta;
    double stretch = 1.0;
    if (scaling.kind == RopeScaling::Kind::kLinear) stretch = scaling.factor;
    const double ratio =
        static_cast<double>(max_model_len_) / config_.max_position_embeddings;
    if (scaling.kind == RopeScaling::Kind::kDynamic && ratio > 1.0) {
      base *= std::pow(scaling.factor * ratio - scaling.factor + 1.0,
                       d / (d - 2.0));
    }
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t head = 0; head < x[t].size(); head += d) {
        for (int i = 0; i < d / 2; ++i) {
          const double angle =
              static_cast<double>(t) / stretch * std::pow(base, -2.0 * i / d);
          double& a = x[t][head + i];
          double& b = x[t][head + i + d / 2];
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = rotated;
        }
      }
    }
  }

  Matrix Attention(const Matrix& x, const std::string& prefix) const {
    Matrix q = Linear(x, prefix + "q_proj");
    Matrix k = Linear(x, prefix + "k_proj");
    const Matrix v = Linear(x, prefix + "v_proj");
    Rotate(q);
    Rotate(k);
    const int d = config_.head_dim;
    const int group = config_.num_heads / config_.num_kv_heads;
    Matrix out(x.size(), Vector(config_.q_size()));
    for (size_t t = 0; t < x.size(); ++t) {
      for (int head = 0; head < config_.num_heads; ++head) {
        const int kv = head / group * d;
        Vector p;
        double sum = 0.0;
        for (size_t s = 0; s <= t; ++s) {
          double score = 0.0;
          for (int i = 0; i < d; ++i)
            score += q[t][head * d + i] * k[s][kv + i];
          p.push_back(std::exp(score / std::sqrt(d)));
          sum += p.back();
        }
        for (size_t s = 0; s <= t; ++s) {
          for (int i = 0; i < d; ++i) {
            out[t][head * d + i] += p[s] / sum * v[s][kv + i];
          }
        }
      }
    }
    return out;
  }

  Matrix Mlp(const Matrix& x, const std::string& prefix) const {
    Matrix gate = Linear(x, prefix + "gate_proj");
    const Matrix up = Linear(x, prefix + "up_proj");
    for (size_t t = 0; t < gate.size(); ++t) {
      for (size_t i = 0; i < gate[t].size(); ++i) {
        gate[t][i] *= up[t][i] / (1.0 + std::exp(-gate[t][i]));
      }
    }
    return Linear(gate, prefix + "down_proj");
  }

  const LlamaConfig config_;
  const Checkpoint checkpoint_;
  const int max_model_len_;
};

}  // namespace

std::vector<double> PlainLlamaLogits(const std::string& model_dir,
                                     const std::vector<TokenId>& tokens,
                                     int max_model_len) {
  auto config = LlamaConfig::Load(model_dir);
  BINARYMOS_CHECK(config.ok()) << config.status().ToString();
  auto checkpoint = Checkpoint::Open(model_dir);
  BINARYMOS_CHECK(checkpoint.ok()) << checkpoint.status().ToString();
  const PlainLlama llama(*std::move(config), *std::move(checkpoint),
                         max_model_len);
  std::vector<double> flat;
  for (const Vector& row : llama.Logits(tokens)) {
    flat.insert(flat.end(), row.begin(), row.end());
  }
  return flat;
}

}  // namespace binarymos
