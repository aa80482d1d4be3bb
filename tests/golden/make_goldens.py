"""Makes the golden cases: logits that the BinaryMoS authors' own PyTorch
modules compute, in float32, for tiny models.

    git clone https://github.com/dongwonjo/BinaryMoS
    git -C BinaryMoS checkout 6fe753031b43d025ccc800fc232627feb82c4dff
    pip install transformers==4.36.2 tokenizers==0.15.2
    python3 make_goldens.py BinaryMoS cases

Needs PyTorch (made with Debian 12's, 1.13, one thread). Nothing of the
authors' code is kept; they run as they are: BinaryMoSForCausalLM with its
BinaryMoSLinear layers. Biases of the MLP, which their layer has and their model
never asks for, are added to the layers afterwards.

A case is a folder:
  config.json  as the authors save it, `num_expert` included
  tokens.i32   the prompts, one after the other, little-endian
  logits.f32   [tokens, vocab] of all positions of all prompts
The weights are not stored. Element i of the tensor called `name` is

  float16(center + amplitude * odd / 1024),
  odd = 2 * (mix(fnv1a(name) + i) >> 40 & 1023) - 1023

with FNV-1a of 64 bits, the finalizer of splitmix64 as mix, and center and
amplitude by the kind of tensor (SCALES), all powers of two: exact in float32,
never zero where the center is.
"""

import json
import os
import sys

import numpy as np
import torch

# Suffix of the name: center, amplitude.
SCALES = [
    ("embed_tokens.weight", 0, 1),
    ("lm_head.weight", 0, 0.25),
    ("norm.weight", 1, 0.25),
    (".in_channel_scale", 1, 0.125),
    (".out_channel_scale", 0.125, 0.03125),
    (".gate_linear.weight", 0, 0.25),
    (".bias", 0, 0.125),
    ("_proj.weight", 0, 0.5),
]
PROMPTS = (1, 17, 300)
BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "torch_dtype": "float16", "vocab_size": 64,
    "hidden_size": 64, "intermediate_size": 272, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False, "attention_bias": False, "num_expert": 4,
}
GQA = {"num_key_value_heads": 2}
CASES = {
    "mha_e4": {},
    "gqa_e1": {**GQA, "num_expert": 1},
    "gqa_e2": {**GQA, "num_expert": 2},
    "gqa_e4": GQA,
    "gqa_e8": {**GQA, "num_expert": 8},
    "mha_e4_attention_bias": {"attention_bias": True},
    "gqa_e4_all_biases": {**GQA, "attention_bias": True, "mlp_bias": True},
    "gqa_e4_linear_rope": {
        **GQA, "max_position_embeddings": 128,
        "rope_scaling": {"type": "linear", "factor": 4.0}},
}


def mix(x):
    """The finalizer of splitmix64, for arrays of uint64."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        return x ^ (x >> np.uint64(31))


def fnv1a(text):
    value = 0xcbf29ce484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value


def random_bits(name, count):
    with np.errstate(over="ignore"):
        return mix(np.uint64(fnv1a(name)) + np.arange(count, dtype=np.uint64))


def weights(name, shape):
    center, amplitude = next((c, a) for suffix, c, a in SCALES
                             if name.endswith(suffix))
    bits = random_bits(name, int(np.prod(shape)))
    odd = 2 * ((bits >> np.uint64(40)) & np.uint64(1023)).astype(np.float32)
    odd -= 1023
    values = np.float32(center) + np.float32(amplitude) * odd / 1024
    halves = values.astype(np.float32).astype(np.float16)
    assert np.isfinite(halves).all() and (halves != 0).all(), name
    return torch.from_numpy(halves.astype(np.float32).reshape(shape))


def build(config):
    from models.modeling_llama import BinaryMoSForCausalLM, LlamaConfig
    settings = LlamaConfig(**config)
    settings._attn_implementation = "eager"
    model = BinaryMoSForCausalLM(settings).eval()
    if config.get("mlp_bias"):
        for name, module in model.named_modules():
            if ".mlp." in name and name.endswith("_proj"):
                module.bias = torch.nn.Parameter(
                    torch.zeros(module.weight.shape[0]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights(name, parameter.shape))
    return model


def make_case(folder, config):
    model = build(config)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    tokens, logits = [], []
    for length in PROMPTS:
        prompt = random_bits(f"prompt {length}", length) % np.uint64(
            config["vocab_size"])
        tokens.append(prompt.astype("<i4"))
        with torch.no_grad():
            rows = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits
        logits.append(rows[0].numpy().astype("<f4"))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w",
              encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    np.concatenate(tokens).tofile(os.path.join(folder, "tokens.i32"))
    np.concatenate(logits).tofile(os.path.join(folder, "logits.f32"))
    print(f"{folder}: logits' deviation {np.concatenate(logits).std():.2f}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    authors, out = sys.argv[1:]
    sys.path.insert(0, authors)
    torch.set_num_threads(1)
    for name, changes in CASES.items():
        make_case(os.path.join(out, name), {**BASE, **changes})


if __name__ == "__main__":
    main()
