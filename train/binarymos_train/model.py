"""A plain LLaMA decoder whose parameter names are Hugging Face's."""

import torch
from torch import nn
from torch.nn import functional as F

from .binary_linear import BinaryMosLinear


def make_linear(config, in_features, out_features, bias):
    """A linear layer inside a decoder block."""
    if config.num_expert:
        return BinaryMosLinear(in_features, out_features, config.num_expert,
                               bias)
    return nn.Linear(in_features, out_features, bias=bias)


class RmsNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # In float32 whatever the type of x is.
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


def rotary_table(config, num_positions, device):
    """cos and sin, each [num_positions, head_dim], float32; the two halves of
    a head are the same (Hugging Face's rotate-half)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32,
                        device=device)
    frequency = 1.0 / config.rope_theta ** (half / config.head_dim)
    position = torch.arange(num_positions, dtype=torch.float32, device=device)
    angle = torch.outer(position / config.rope_factor, frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """x: [batch, heads, tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


def causal_attention(q, k, v):
    """q, k and v: [batch, heads, tokens, head_dim]."""
    if hasattr(F, "scaled_dot_product_attention"):  # PyTorch 2
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    tokens = q.shape[2]
    mask = torch.full((tokens, tokens), float("-inf"), device=q.device)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = F.softmax(scores + mask.triu(1), dim=-1, dtype=torch.float32)
    return scores.to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        size, bias = config.hidden_size, config.attention_bias
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = make_linear(config, size, size, bias)
        self.k_proj = make_linear(config, size, kv_size, bias)
        self.v_proj = make_linear(config, size, kv_size, bias)
        self.o_proj = make_linear(config, size, size, bias)

    def heads(self, x):
        """[batch, tokens, n * head_dim] to [batch, n, tokens, head_dim]."""
        batch, tokens, _ = x.shape
        x = x.view(batch, tokens, -1, self.config.head_dim)
        return x.transpose(1, 2)

    def forward(self, x, rope):
        batch, tokens, size = x.shape
        q = rotate(self.heads(self.q_proj(x)), *rope)
        k = rotate(self.heads(self.k_proj(x)), *rope)
        v = self.heads(self.v_proj(x))
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k = k.repeat_interleave(group, dim=1)
            v = v.repeat_interleave(group, dim=1)
        y = causal_attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, tokens, size))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = make_linear(config, size, inner, config.mlp_bias)
        self.up_proj = make_linear(config, size, inner, config.mlp_bias)
        self.down_proj = make_linear(config, inner, size, config.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config, dropout):
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size,
                                                config.rms_norm_eps)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, rope):
        x = x + self.dropout(
            self.self_attn(self.input_layernorm(x), rope))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    def __init__(self, config, dropout):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, dropout)
                                    for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)


class Llama(nn.Module):
    """`dropout` acts on the embeddings and on both branches of a block, in
    training mode only."""

    def __init__(self, config, dropout=0.0):
        super().__init__()
        config.validate()
        self.config = config
        self.model = Decoder(config, dropout)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size,
                                     bias=False)

    def init_weights(self, generator, std=0.02):
        """A fresh float model; the last layer of each branch starts smaller,
        so that the sum of all branches does not grow with the depth."""
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_branch = name.endswith(("o_proj.weight",
                                             "down_proj.weight"))
                parameter.data.normal_(0, std * (depth if ends_branch else 1),
                                       generator=generator)

    def head(self, x):
        if self.config.tie_word_embeddings:
            return F.linear(x, self.model.embed_tokens.weight)
        return self.lm_head(x)

    def forward(self, tokens):
        """tokens [batch, n] to (logits [batch, n, vocab], hidden states).

        The hidden states are Hugging Face's `hidden_states[1:]`: the output of
        every block, the last one after the final norm.
        """
        decoder, count = self.model, tokens.shape[1]
        if count > self.config.max_position_embeddings:
            raise ValueError(f"{count} tokens, but the model has "
                             f"{self.config.max_position_embeddings} positions")
        rope = rotary_table(self.config, count, tokens.device)
        x = decoder.dropout(decoder.embed_tokens(tokens))
        hidden = []
        for layer in decoder.layers:
            x = layer(x, rope)
            hidden.append(x)
        hidden[-1] = decoder.norm(x)
        return self.head(hidden[-1]), hidden


def binary_linears(model):
    """(name, layer) of every BinaryMosLinear, in the order of the model."""
    return [(name, module) for name, module in model.named_modules()
            if isinstance(module, BinaryMosLinear)]
