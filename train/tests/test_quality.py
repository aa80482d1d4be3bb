import unittest

import torch

from binarymos_train import quality
from tests import tiny


class QualityTest(unittest.TestCase):
    def test_words_are_letters_with_inner_apostrophes(self):
        self.assertEqual(quality.words("\"Don't go,\" said 2 Kings; 'tis o'er"),
                         ["don't", "go", "said", "kings", "tis", "o'er"])

    def test_counts_the_commonest_run_of_four(self):
        self.assertEqual(quality.most_repeated("abcdabcdabcd"), 3)
        self.assertEqual(quality.most_repeated("abc"), 0)
        self.assertEqual(quality.most_repeated("aaaaaa"), 3)

    def test_samples_are_reproducible_and_never_end(self):
        model = tiny.teacher(max_position_embeddings=16)
        rows = quality.sample(model, [[1, 5]] * 20, 8, 1.0, seed=3, eos=7)
        self.assertEqual(rows, quality.sample(model, [[1, 5]] * 20, 8, 1.0,
                                              seed=3, eos=7))
        self.assertEqual({len(row) for row in rows}, {8})
        self.assertNotIn(7, sum(rows, []))

    def test_a_low_temperature_draws_the_likeliest(self):
        model = tiny.teacher()
        row, = quality.sample(model, [[1, 5]], 1, 1e-4, seed=3, eos=7)
        logits = model(torch.tensor([[1, 5]]))[0][0, -1]
        logits[7] = float("-inf")
        self.assertEqual(row, [logits.argmax().item()])


if __name__ == "__main__":
    unittest.main()
