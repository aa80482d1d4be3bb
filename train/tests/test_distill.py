import math
import unittest

import torch

from binarymos_train.checkpoint import make_student
from binarymos_train.distill import (DistillationLoss, freeze_all_but_linears,
                                     hidden_loss, kl_loss)
from tests import tiny


class LossTest(unittest.TestCase):
    def test_kl_is_summed_over_positions_and_divided_by_the_batch(self):
        # Teacher (3/4, 1/4) against student (1/2, 1/2) at every position.
        one = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
        for batch, positions in ((1, 1), (1, 5), (3, 5)):
            teacher = torch.tensor([math.log(3.0), 0.0])
            teacher = teacher.expand(batch, positions, 2)
            student = torch.zeros(batch, positions, 2)
            self.assertAlmostEqual(kl_loss(student, teacher).item(),
                                   positions * one, places=5)

    def test_kl_weighs_by_the_teacher(self):
        teacher = torch.tensor([[[0.0, 0.0]]])
        student = torch.tensor([[[math.log(3.0), 0.0]]])
        want = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
        self.assertAlmostEqual(kl_loss(student, teacher).item(), want,
                               places=6)

    def test_hidden_states_are_averaged_within_and_summed_over_layers(self):
        student = [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)]
        teacher = [torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 3.0)]
        self.assertEqual(hidden_loss(student, teacher).item(), 4.0 + 9.0)

    def test_total_is_kl_plus_ten_times_the_hidden_loss(self):
        teacher = tiny.teacher()
        student = make_student(teacher, 4, seed=1)
        rows = torch.randint(0, 64, (3, 9))
        total, parts = DistillationLoss(teacher)(student, rows)
        teacher_logits, teacher_hidden = teacher(rows[:, :-1])
        logits, hidden = student(rows[:, :-1])
        want = kl_loss(logits, teacher_logits) + 10 * sum(
            ((a - b) ** 2).mean() for a, b in zip(hidden, teacher_hidden))
        torch.testing.assert_close(total, want)
        self.assertAlmostEqual(
            parts["kl/token"].item() * 8 + 10 * parts["mse"].item(),
            want.item(), places=3)

    def test_a_student_that_equals_its_teacher_has_no_loss(self):
        teacher = tiny.teacher()
        total, _ = DistillationLoss(teacher)(teacher,
                                             torch.randint(0, 64, (2, 9)))
        self.assertAlmostEqual(total.item(), 0, places=5)


class FreezeTest(unittest.TestCase):
    def test_only_the_binary_linears_are_trained(self):
        student = make_student(tiny.teacher(tie_word_embeddings=False,
                                            attention_bias=True), 4, seed=1)
        freeze_all_but_linears(student)
        frozen = {name for name, p in student.named_parameters()
                  if not p.requires_grad}
        want = {"model.embed_tokens.weight", "model.norm.weight",
                "lm_head.weight"}
        for layer in range(2):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                want.add(f"model.layers.{layer}.{norm}.weight")
        self.assertEqual(frozen, want)
        self.assertTrue(
            student.model.layers[0].self_attn.q_proj.bias.requires_grad)


class StudentTest(unittest.TestCase):
    def test_keeps_what_is_not_binary(self):
        teacher = tiny.teacher(attention_bias=True)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.normal_()
        student = dict(make_student(teacher, 2, seed=1).named_parameters())
        for name, parameter in teacher.named_parameters():
            torch.testing.assert_close(student[name], parameter, rtol=0,
                                       atol=0)

    def test_refuses_a_binary_teacher(self):
        student = make_student(tiny.teacher(), 2, seed=1)
        with self.assertRaisesRegex(ValueError, "plain float"):
            make_student(student, 4, seed=1)


if __name__ == "__main__":
    unittest.main()
