"""Hyperparameters of a LLaMA model, as `config.json` states them."""

import dataclasses
import json
import os


@dataclasses.dataclass
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    # {"type": "linear", "factor": f}, or None.
    rope_scaling: dict = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    # 0: plain float model; E >= 1: BinaryMoS with E experts.
    num_expert: int = 0

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_factor(self):
        """Positions are divided by this (linear RoPE scaling)."""
        return float(self.rope_scaling["factor"]) if self.rope_scaling else 1.0

    def validate(self, where="config.json"):
        """Raises ValueError naming `where` for a model that is not ours."""
        def require(ok, message):
            if not ok:
                raise ValueError(f"{where}: {message}")
        require(self.hidden_size % self.num_attention_heads == 0,
                "hidden_size must be a multiple of num_attention_heads")
        require(self.head_dim % 2 == 0, "the size of a head must be even")
        require(self.num_attention_heads % self.num_key_value_heads == 0,
                "num_attention_heads must be a multiple of "
                "num_key_value_heads")
        require(0 <= self.num_expert <= 8, "num_expert must be 0 to 8")
        if self.rope_scaling:
            kind = self.rope_scaling.get("type",
                                         self.rope_scaling.get("rope_type"))
            require(kind == "linear",
                    f"rope_scaling {kind!r}: only linear is supported")

    @classmethod
    def load(cls, model_dir):
        """Reads `<model_dir>/config.json`."""
        path = os.path.join(model_dir, "config.json")
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        if "quantization_config" in values:
            raise ValueError(f"{path}: this is a packed model; training reads "
                             "the published layout")
        for key, only in (("model_type", "llama"), ("hidden_act", "silu")):
            if values.get(key, only) != only:
                raise ValueError(f"{path}: {key} {values[key]!r}: only "
                                 f"{only!r} is supported")
        values.setdefault("num_key_value_heads",
                          values.get("num_attention_heads"))
        names = {field.name for field in dataclasses.fields(cls)}
        config = cls(**{k: v for k, v in values.items() if k in names})
        if values.get("head_dim", config.head_dim) != config.head_dim:
            raise ValueError(f"{path}: head_dim must be hidden_size / "
                             "num_attention_heads")
        config.validate(path)
        return config

    def to_json(self):
        """The dictionary that `config.json` holds."""
        values = dataclasses.asdict(self)
        if not self.num_expert:
            del values["num_expert"]
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                "hidden_act": "silu", "torch_dtype": "float16", **values}
