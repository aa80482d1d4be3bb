"""The BinaryMoS linear layer: binary weights, token-adaptive scales."""

import torch
from torch import nn
from torch.nn import functional as F


class SignSte(torch.autograd.Function):
    """sign(w); the gradient passes unchanged where |w| < 1."""

    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.sign()

    @staticmethod
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        return grad * (weight.abs() < 1)


def rank1_of_abs(weight):
    """(out_scale [out], in_scale [in]): the rank-1 SVD of |weight|.

    outer(out_scale, in_scale) is the best rank-1 approximation of |weight|;
    both are non-negative (the leading singular vectors of a non-negative
    matrix have one sign) and share the singular value evenly.
    """
    u, s, vh = torch.linalg.svd(weight.detach().float().abs(),
                                full_matrices=False)
    root = s[0].sqrt()
    return (u[:, 0] * root).abs(), (vh[0] * root).abs()


class BinaryMosLinear(nn.Module):
    """y = ((x * s_in) @ sign(W)^T) * s_out + bias.

    A router mixes the scales of the experts for every token. Parameter names
    and shapes are those of the published checkpoints:
      weight             [out, in]  latent; only its sign is used
      gate_linear.weight [E, in]    router; of no effect for one expert
      in_channel_scale   [E, in]
      out_channel_scale  [E, out]
      bias               [out]      optional
    """

    def __init__(self, in_features, out_features, num_expert, bias=False):
        super().__init__()
        self.num_expert = num_expert
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.gate_linear = nn.Linear(in_features, num_expert, bias=False)
        self.in_channel_scale = nn.Parameter(
            torch.ones(num_expert, in_features))
        self.out_channel_scale = nn.Parameter(
            torch.ones(num_expert, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @torch.no_grad()
    def init_from(self, weight, bias=None):
        """Takes over a float layer: latent weights as they are, every expert
        from the rank-1 SVD of |weight|. The router keeps its random start,
        which is what tells the experts apart."""
        out_scale, in_scale = rank1_of_abs(weight)
        self.weight.copy_(weight)
        self.in_channel_scale.copy_(in_scale.expand_as(self.in_channel_scale))
        self.out_channel_scale.copy_(
            out_scale.expand_as(self.out_channel_scale))
        if self.bias is not None:
            self.bias.copy_(bias)

    def scales(self, x):
        """(s_in, s_out) that broadcast over x [..., in] and y [..., out]."""
        if self.num_expert == 1:
            return self.in_channel_scale, self.out_channel_scale
        gates = F.softmax(self.gate_linear(x), dim=-1, dtype=torch.float32)
        gates = gates.to(x.dtype)
        return gates @ self.in_channel_scale, gates @ self.out_channel_scale

    def forward(self, x):
        s_in, s_out = self.scales(x)
        y = F.linear(x * s_in, SignSte.apply(self.weight)) * s_out
        return y if self.bias is None else y + self.bias
