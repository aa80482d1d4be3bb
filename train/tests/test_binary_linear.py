import unittest

import torch
from torch.nn import functional as F

from binarymos_train.binary_linear import (BinaryMosLinear, SignSte,
                                           rank1_of_abs)


class SignSteTest(unittest.TestCase):
    def test_forward_is_the_sign(self):
        weight = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
        self.assertEqual(SignSte.apply(weight).tolist(), [-1, -1, 0, 1, 1])

    def test_gradient_passes_where_the_weight_is_below_one(self):
        weight = torch.tensor([-1.5, -1.0, -0.9, 0.0, 0.9, 1.0, 1.5],
                              requires_grad=True)
        SignSte.apply(weight).backward(torch.arange(1.0, 8.0))
        self.assertEqual(weight.grad.tolist(), [0, 0, 3, 4, 5, 0, 0])


class Rank1Test(unittest.TestCase):
    def test_recovers_a_matrix_of_rank_one(self):
        rows = torch.tensor([1.0, 2.0, 3.0])
        columns = torch.tensor([0.5, 4.0])
        signs = torch.tensor([[1.0, -1], [-1, -1], [1, 1]])
        out_scale, in_scale = rank1_of_abs(torch.outer(rows, columns) * signs)
        torch.testing.assert_close(torch.outer(out_scale, in_scale),
                                   torch.outer(rows, columns))
        # The singular value is shared evenly.
        torch.testing.assert_close(out_scale.norm(), in_scale.norm())

    def test_is_the_best_approximation_of_rank_one(self):
        weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
        out_scale, in_scale = rank1_of_abs(weight)
        error = (weight.abs() - torch.outer(out_scale, in_scale)).norm()
        # Eckart-Young: what remains are the other singular values.
        others = torch.linalg.svdvals(weight.abs())[1:]
        torch.testing.assert_close(error, others.norm())
        self.assertGreaterEqual(min(out_scale.min(), in_scale.min()), 0)


def make_layer(num_expert=3, bias=True):
    """Double precision; latent weights between 0.2 and 0.8 in magnitude, so
    that no finite difference crosses zero or one."""
    torch.manual_seed(3)
    layer = BinaryMosLinear(6, 5, num_expert, bias).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.2, 0.8)
        layer.weight.mul_(torch.randn_like(layer.weight).sign())
        layer.gate_linear.weight.normal_()
    return layer


class BinaryMosLinearTest(unittest.TestCase):
    def test_computes_the_formula_token_by_token(self):
        layer, x = make_layer(), torch.randn(2, 4, 6).double()
        got = layer(x)
        for b in range(2):
            for t in range(4):
                gates = torch.softmax(layer.gate_linear.weight @ x[b, t], 0)
                s_in = sum(gates[e] * layer.in_channel_scale[e]
                           for e in range(3))
                s_out = sum(gates[e] * layer.out_channel_scale[e]
                            for e in range(3))
                y = layer.weight.sign() @ (x[b, t] * s_in) * s_out
                # The router's softmax is in float32.
                torch.testing.assert_close(got[b, t], y + layer.bias,
                                           rtol=1e-6, atol=1e-6)

    def test_one_expert_ignores_its_router(self):
        layer, x = make_layer(1, bias=False), torch.randn(4, 6).double()
        y = F.linear(x * layer.in_channel_scale[0], layer.weight.sign())
        torch.testing.assert_close(layer(x), y * layer.out_channel_scale[0])

    def test_scales_router_bias_and_input_match_finite_differences(self):
        layer = make_layer()
        x = torch.randn(7, 6).double().requires_grad_()
        smooth = [x, layer.gate_linear.weight, layer.in_channel_scale,
                  layer.out_channel_scale, layer.bias]
        target = torch.randn(7, 5).double()

        def loss():
            # The layer in double throughout: its own softmax rounds to float.
            gates = torch.softmax(layer.gate_linear(x), -1)
            y = F.linear(x * (gates @ layer.in_channel_scale),
                         layer.weight.sign())
            y = y * (gates @ layer.out_channel_scale) + layer.bias
            return ((y - target) ** 2).sum()

        ((layer(x) - target) ** 2).sum().backward()
        for tensor in smooth:
            flat = tensor.detach().view(-1)
            for i in range(0, flat.numel(), 5):
                step, kept = 1e-6, flat[i].item()
                flat[i] = kept + step
                above = loss().item()
                flat[i] = kept - step
                below = loss().item()
                flat[i] = kept
                slope = (above - below) / (2 * step)
                self.assertAlmostEqual(tensor.grad.view(-1)[i].item(), slope,
                                       delta=1e-4 * max(1, abs(slope)))

    def test_latent_gradient_is_that_of_the_binary_weight(self):
        # Straight through: where |w| < 1 the latent weight's gradient is the
        # one that sign(w) has as a free variable, here by finite differences
        # of the binary matrix, away from any sign change.
        layer, x = make_layer(), torch.randn(7, 6).double()
        with torch.no_grad():
            layer.weight[0, 0] = 1.25
        layer(x).pow(2).sum().backward()
        binary = layer.weight.detach().sign()

        def loss(matrix):
            s_in, s_out = layer.scales(x)
            y = F.linear(x * s_in, matrix) * s_out + layer.bias
            return y.pow(2).sum().item()

        self.assertEqual(layer.weight.grad[0, 0], 0)
        for i, j in ((0, 1), (2, 3), (4, 5), (1, 0)):
            step = torch.zeros_like(binary)
            step[i, j] = 1e-6
            slope = (loss(binary + step) - loss(binary - step)) / 2e-6
            self.assertAlmostEqual(layer.weight.grad[i, j].item(), slope,
                                   delta=1e-5 * max(1, abs(slope)))

    def test_start_from_a_float_layer(self):
        torch.manual_seed(0)
        weight, bias = torch.randn(5, 6), torch.randn(5)
        layer = BinaryMosLinear(6, 5, 4, bias=True)
        router = layer.gate_linear.weight.clone()
        layer.init_from(weight, bias)
        out_scale, in_scale = rank1_of_abs(weight)
        for expert in range(4):
            torch.testing.assert_close(layer.in_channel_scale[expert],
                                       in_scale)
            torch.testing.assert_close(layer.out_channel_scale[expert],
                                       out_scale)
        torch.testing.assert_close(layer.gate_linear.weight, router)
        self.assertGreater(router.std().item(), 0)
        # Equal experts: whatever the router says, the layer is sign(W) times
        # the rank-1 scales.
        x = torch.randn(3, 6)
        want = F.linear(x, weight.sign() * torch.outer(out_scale, in_scale),
                        bias)
        torch.testing.assert_close(layer(x), want)


if __name__ == "__main__":
    unittest.main()
