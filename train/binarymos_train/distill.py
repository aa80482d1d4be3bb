"""Quantization-aware training with distillation: the loss, what is frozen."""

import torch
from torch.nn import functional as F

from .model import binary_linears

HIDDEN_WEIGHT = 10.0


def freeze_all_but_linears(student):
    """Trains what belongs to a BinaryMosLinear: latent weights, routers,
    scales, biases. Embeddings, norms and lm_head stay as they are."""
    student.requires_grad_(False)
    for _, layer in binary_linears(student):
        layer.requires_grad_(True)
        if layer.num_expert == 1:
            layer.gate_linear.requires_grad_(False)


def kl_loss(student_logits, teacher_logits):
    """KL(teacher || student), summed over positions and vocabulary, divided by
    the number of sequences only (torch's batchmean of [batch, n, vocab])."""
    log_student = F.log_softmax(student_logits.float(), dim=-1)
    log_teacher = F.log_softmax(teacher_logits.float(), dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean",
                    log_target=True)


def hidden_loss(student_hidden, teacher_hidden):
    """The sum over layers of the mean squared difference."""
    return sum(F.mse_loss(s.float(), t.float())
               for s, t in zip(student_hidden, teacher_hidden))


class DistillationLoss:
    """KL + HIDDEN_WEIGHT * MSE over every hidden state that the model
    returns, against a frozen float teacher."""

    def __init__(self, teacher):
        self.teacher = teacher.eval().requires_grad_(False)

    def __call__(self, student, rows):
        tokens = rows[:, :-1]
        with torch.no_grad():
            teacher_logits, teacher_hidden = self.teacher(tokens)
        logits, hidden = student(tokens)
        kl = kl_loss(logits, teacher_logits)
        mse = hidden_loss(hidden, teacher_hidden)
        # Reported per position, which reads better than per sequence.
        parts = {"kl/token": kl / tokens.shape[1], "mse": mse}
        return kl + HIDDEN_WEIGHT * mse, parts
