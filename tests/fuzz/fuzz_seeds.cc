// fuzz_seeds DIR: writes what the fuzzers start from, DIR/<fuzzer>/*.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "engine/core/check.h"
#include "engine/synthesize.h"

namespace binarymos {
namespace {

namespace fs = std::filesystem;

void WriteSeeds(const fs::path& out) {
  for (const char* name :
       {"config_fuzz", "safetensors_fuzz", "tokenizer_fuzz"}) {
    fs::create_directories(out / name);
  }
  for (const std::string method :
       {"binarymos", "float16", "binarymos-training"}) {
    SyntheticShape shape;
    shape.hidden_size = shape.intermediate_size = 8;
    shape.num_layers = 1;
    shape.num_heads = shape.num_kv_heads = 2;
    shape.vocab_size = kMinSyntheticVocab;
    shape.tie_word_embeddings = true;
    shape.quant_method = method;
    if (method == "float16") {
      shape.num_experts = 0;
      shape.rope_scaling = "linear";
      shape.rope_factor = 2;
    }
    const fs::path model = out / (method + ".model");
    const absl::Status status = SynthesizeModel(model.string(), shape, 1);
    BINARYMOS_CHECK(status.ok()) << status.message();
    fs::rename(model / "config.json", out / "config_fuzz" / method);
    fs::rename(model / "model.safetensors", out / "safetensors_fuzz" / method);
    fs::rename(model / "tokenizer.model", out / "tokenizer_fuzz" / method);
    fs::remove_all(model);
  }
  std::ofstream(out / "safetensors_fuzz" / "index")
      << R"({"metadata":{"total_size":4},)"
      << R"("weight_map":{"a":"shard.safetensors"}})";
}

}  // namespace
}  // namespace binarymos

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: fuzz_seeds DIR\n";
    return 2;
  }
  binarymos::WriteSeeds(argv[1]);
}
