import math
import unittest

import torch

from binarymos_train.model import rotary_table, rotate
from tests import tiny


class RotaryTest(unittest.TestCase):
    def test_turns_pairs_of_the_two_halves(self):
        config = tiny.config(hidden_size=32, rope_theta=100.0)  # head_dim 8
        cos, sin = rotary_table(config, 6, "cpu")
        x = torch.randn(1, 1, 6, 8)
        got = rotate(x, cos, sin)
        for position in range(6):
            for i in range(4):
                angle = position * 100.0 ** (-2 * i / 8)
                a, b = x[0, 0, position, i], x[0, 0, position, i + 4]
                want = torch.stack((
                    a * math.cos(angle) - b * math.sin(angle),
                    b * math.cos(angle) + a * math.sin(angle)))
                torch.testing.assert_close(got[0, 0, position, [i, i + 4]],
                                           want)

    def test_linear_scaling_stretches_positions(self):
        plain, _ = rotary_table(tiny.config(), 8, "cpu")
        scaled, _ = rotary_table(
            tiny.config(rope_scaling={"type": "linear", "factor": 2.0}), 15,
            "cpu")
        torch.testing.assert_close(scaled[::2], plain)


class LlamaTest(unittest.TestCase):
    def test_later_tokens_do_not_change_earlier_logits(self):
        model = tiny.teacher()
        tokens = torch.randint(0, 64, (1, 12))
        before = model(tokens)[0]
        tokens[0, 8] = (tokens[0, 8] + 1) % 64
        after = model(tokens)[0]
        torch.testing.assert_close(after[:, :8], before[:, :8], rtol=0, atol=0)
        self.assertFalse(torch.equal(after[:, 8], before[:, 8]))

    def test_grouped_heads_equal_repeated_key_and_value_heads(self):
        grouped = tiny.teacher(num_key_value_heads=2)
        full = tiny.teacher(num_key_value_heads=4)
        state = grouped.state_dict()
        for name in list(state):
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                heads = state[name].view(2, 4, 16)
                state[name] = heads.repeat_interleave(2, 0).reshape(16, 16)
        full.load_state_dict(state)
        tokens = torch.randint(0, 64, (2, 10))
        torch.testing.assert_close(grouped(tokens)[0], full(tokens)[0])

    def test_hidden_states_are_every_block_and_the_last_is_normed(self):
        model = tiny.teacher()
        with torch.no_grad():
            model.model.norm.weight.fill_(2.0)
        logits, hidden = model(torch.randint(0, 64, (2, 5)))
        self.assertEqual(len(hidden), 2)
        torch.testing.assert_close(logits, model.head(hidden[-1]))
        torch.testing.assert_close(hidden[-1].square().mean(-1),
                                   torch.full((2, 5), 4.0), rtol=1e-3, atol=0)
        self.assertGreater(
            (hidden[0].square().mean(-1) - 4.0).abs().min().item(), 1e-3)

    def test_refuses_more_tokens_than_positions(self):
        with self.assertRaisesRegex(ValueError, "17 tokens"):
            tiny.teacher()(torch.zeros(1, 17, dtype=torch.long))


if __name__ == "__main__":
    unittest.main()
