// config.json: what is accepted keeps the promises of llama_config.h.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/core/check.h"
#include "engine/model/llama_config.h"

namespace binarymos {
namespace {

bool Within(double value, double low, double high) {
  return low <= value && value <= high;
}

void CheckPromises(const LlamaConfig& c) {
  BINARYMOS_CHECK(Within(c.hidden_size, 8, 65536) && c.hidden_size % 8 == 0);
  BINARYMOS_CHECK(Within(c.intermediate_size, 8, 524288) &&
                  c.intermediate_size % 8 == 0);
  BINARYMOS_CHECK(Within(c.num_layers, 1, 512));
  BINARYMOS_CHECK(Within(c.num_heads, 1, 1024));
  BINARYMOS_CHECK(Within(c.num_kv_heads, 1, c.num_heads) &&
                  c.num_heads % c.num_kv_heads == 0);
  BINARYMOS_CHECK(Within(c.head_dim, 2, 512) && c.head_dim % 2 == 0 &&
                  c.q_size() % 8 == 0);
  BINARYMOS_CHECK(Within(c.vocab_size, 1, 1048576));
  BINARYMOS_CHECK(Within(c.max_position_embeddings, 1, 16777216));
  BINARYMOS_CHECK(Within(c.rms_norm_eps, 0.99e-12, 0.11));
  BINARYMOS_CHECK(Within(c.rope_theta, 1, 1e12));
  BINARYMOS_CHECK(c.rope_scaling.factor >= 1);
  BINARYMOS_CHECK(Within(c.bos_token, -1, c.vocab_size - 1));
  BINARYMOS_CHECK(std::is_sorted(c.eos_tokens.begin(), c.eos_tokens.end()));
  BINARYMOS_CHECK(std::adjacent_find(c.eos_tokens.begin(),
                                     c.eos_tokens.end()) == c.eos_tokens.end());
  if (c.quant_method == QuantMethod::kBinaryMos) {
    BINARYMOS_CHECK(Within(c.num_experts, 1, 8));
  } else {
    BINARYMOS_CHECK(c.num_experts == 0);
  }
}

}  // namespace
}  // namespace binarymos

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto config = binarymos::LlamaConfig::Parse(text, "config.json");
  if (config.ok()) binarymos::CheckPromises(*config);
  return 0;
}
