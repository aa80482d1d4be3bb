import contextlib
import io
import math
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch

from binarymos_train import __main__ as distillation
from binarymos_train import teacher as float_training
from binarymos_train.data import Windows
from binarymos_train.perplexity import perplexity
from binarymos_train.trainer import Trainer, TrainOptions, learning_rate
from tests import tiny

ROOM = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def options(**changes):
    values = dict(steps=10, batch=2, micro_batch=2, window=8, lr=1e-2)
    return TrainOptions(**{**values, **changes})


class ScheduleTest(unittest.TestCase):
    def test_warms_up_over_three_percent_then_follows_a_cosine_to_zero(self):
        o = options(steps=1000, lr=1.0)
        self.assertAlmostEqual(learning_rate(o, 0), 1 / 30)
        self.assertAlmostEqual(learning_rate(o, 29), 1.0)
        self.assertAlmostEqual(learning_rate(o, 30), 1.0)
        self.assertAlmostEqual(learning_rate(o, 515), 0.5)
        self.assertAlmostEqual(learning_rate(o, 1000), 0.0)

    def test_reaches_zero_when_the_time_is_up(self):
        o = options(steps=1000, lr=1.0, max_seconds=10.0)
        self.assertAlmostEqual(learning_rate(o, 30, 5.0), 0.5)
        self.assertAlmostEqual(learning_rate(o, 30, 11.0), 0.0)
        # Steps that are fast enough follow the schedule of the steps.
        self.assertAlmostEqual(learning_rate(o, 515, 1.0), 0.5)


class WindowsTest(unittest.TestCase):
    def test_an_epoch_shows_every_window_once_at_a_shifted_start(self):
        windows = Windows(np.arange(103), 10, seed=1)
        self.assertEqual(windows.per_epoch, 9)
        for epoch in range(3):
            rows = windows.batch(epoch * 9, 9)
            self.assertTrue(torch.equal(rows[:, 1:], rows[:, :-1] + 1))
            starts = sorted(rows[:, 0].tolist())
            self.assertLess(starts[0], 10)
            self.assertEqual(np.diff(starts).tolist(), [10] * 8)

    def test_a_batch_does_not_depend_on_what_was_asked_before(self):
        first = Windows(np.arange(500), 10, seed=1)
        first.batch(0, 100)
        second = Windows(np.arange(500), 10, seed=1)
        self.assertTrue(torch.equal(first.batch(60, 7), second.batch(60, 7)))
        other = Windows(np.arange(500), 10, seed=2)
        self.assertFalse(torch.equal(first.batch(60, 7), other.batch(60, 7)))

    def test_refuses_too_few_tokens(self):
        with self.assertRaisesRegex(ValueError, "too few"):
            Windows(np.arange(15), 10, seed=1)


class PerplexityTest(unittest.TestCase):
    def test_is_the_exponential_of_the_mean_of_the_windows_means(self):
        model = tiny.teacher()
        tokens = torch.randint(0, 64, (25,)).tolist()  # 2 windows of 10
        total = 0.0
        for begin in (0, 10):
            row = torch.tensor(tokens[begin:begin + 10])
            log = model(row[None])[0][0].log_softmax(-1)
            nll = [-log[i, row[i + 1]].item() for i in range(9)]
            total += sum(nll) / 9
        self.assertAlmostEqual(perplexity(model, tokens, 10),
                               math.exp(total / 2), places=3)


class TrainerTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        quiet = contextlib.redirect_stdout(io.StringIO())
        quiet.__enter__()
        self.addCleanup(quiet.__exit__, None, None, None)

    def trainer(self, name="out", evaluate=None, **changes):
        model = tiny.teacher()
        windows = Windows(np.arange(300) % 64, 8, seed=1)
        return Trainer(model, windows, float_training.next_token_loss,
                       options(**changes), os.path.join(self.folder, name),
                       evaluate)

    def test_learns_a_sequence(self):
        trainer = self.trainer(steps=400)
        trainer.run()
        loss, _ = float_training.next_token_loss(
            trainer.model, trainer.windows.batch(0, 8))
        self.assertLess(loss.item(), 0.2)  # ln 64 = 4.2 at the start

    def test_micro_batches_give_the_gradient_of_the_whole_batch(self):
        whole = self.trainer(batch=4, micro_batch=4)
        parts = self.trainer(batch=4, micro_batch=1)
        whole.gradients()
        parts.gradients()
        for a, b in zip(whole.trained, parts.trained):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)

    def test_keeps_the_best_model_and_stops_when_patience_runs_out(self):
        values = [5.0, 3.0, 4.0, 6.0, 1.0]
        kept = []

        def evaluate(model):
            kept.append(model.model.norm.weight.detach().clone())
            return values[len(kept) - 1]

        trainer = self.trainer(evaluate=evaluate, eval_every=1, patience=2)
        trainer.run()
        self.assertEqual((trainer.step, trainer.best), (4, 3.0))
        self.assertTrue(torch.equal(trainer.model.model.norm.weight, kept[1]))

    def test_stops_and_evaluates_when_the_time_is_up(self):
        trainer = self.trainer(evaluate=lambda model: 7.0, eval_every=9,
                               checkpoint_every=9, max_seconds=1e-9)
        trainer.run()
        self.assertEqual((trainer.step, trainer.best), (1, 7.0))
        again = self.trainer(evaluate=lambda model: 7.0, eval_every=9,
                             checkpoint_every=9, max_seconds=1e-9)
        self.assertTrue(again.resume())
        again.run()
        self.assertEqual(again.step, 1)

    def test_refuses_a_time_limit_for_several_processes(self):
        with self.assertRaisesRegex(ValueError, "single process"):
            options(max_seconds=1.0, micro_batch=1).validate(2)

    def test_refuses_to_resume_with_other_options(self):
        self.trainer(steps=2, checkpoint_every=1).run()
        with self.assertRaisesRegex(ValueError, "other options"):
            self.trainer(steps=3, checkpoint_every=1).resume()

    def test_refuses_a_loss_that_is_not_a_number(self):
        trainer = self.trainer()
        with torch.no_grad():
            trainer.model.model.norm.weight.fill_(float("nan"))
        with self.assertRaisesRegex(FloatingPointError, "step 1"):
            trainer.run()

    def test_refuses_a_batch_that_does_not_divide(self):
        with self.assertRaisesRegex(ValueError, "multiple"):
            self.trainer(batch=3, micro_batch=2)


class CommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.teacher, self.data = tiny.write_teacher(self.folder)

    def arguments(self, out, *more):
        return ["--teacher", self.teacher, "--data", self.data, "--out", out,
                "--steps", "6", "--batch", "2", "--micro-batch", "1",
                "--lr", "0.01", "--window", "12", "--device", "cpu", *more]

    def distill(self, name, *more):
        out = os.path.join(self.folder, name)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            distillation.main(self.arguments(out, *more))
        self.said = said.getvalue()
        return out

    def assert_same(self, first, second):
        first, second = map(tiny.parameters_of, (first, second))
        self.assertEqual(list(first), list(second))
        for name in first:
            self.assertTrue(torch.equal(first[name], second[name]), name)

    def test_trains_the_linears_and_nothing_else(self):
        out = self.distill("out", "--experts", "2")
        before = tiny.parameters_of(self.teacher)
        after = tiny.parameters_of(out)
        for name, tensor in before.items():
            same = torch.equal(tensor, after[name])
            self.assertEqual(same, not name.endswith("proj.weight"), name)
        self.assertIn("kl/token", self.said)
        self.assertIn("tokens/s", self.said)
        self.assertIn("ETA", self.said)

    def test_one_expert_trains_without_a_router(self):
        out = self.distill("out", "--experts", "1")
        scale = tiny.parameters_of(out)[
            "model.layers.0.mlp.up_proj.in_channel_scale"]
        self.assertEqual(scale.shape, (1, 16))

    def test_a_resumed_run_is_bit_identical(self):
        whole = self.distill("whole", "--checkpoint-every", "3")
        checkpoint = os.path.join(self.folder, "cut", "checkpoint.pt")
        # An interruption right after step 3.
        step = Trainer.train_step

        def interrupted(trainer):
            if trainer.step == 3:
                raise KeyboardInterrupt
            return step(trainer)

        Trainer.train_step = interrupted
        try:
            with self.assertRaises(KeyboardInterrupt):
                self.distill("cut", "--checkpoint-every", "3")
        finally:
            Trainer.train_step = step
        self.assertEqual(torch.load(checkpoint)["step"], 3)
        cut = self.distill("cut", "--checkpoint-every", "3", "--resume")
        self.assertIn("resumed after step 3", self.said)
        self.assert_same(whole, cut)

    def test_a_resumed_float_run_with_dropout_is_bit_identical(self):
        def train(name, *more):
            out = os.path.join(self.folder, name)
            with contextlib.redirect_stdout(io.StringIO()):
                float_training.main([
                    "--config", self.teacher, "--data", self.data, "--out",
                    out, "--steps", "4", "--batch", "2", "--dropout", "0.2",
                    "--checkpoint-every", "2", "--device", "cpu", *more])
            return out

        whole = train("whole")
        kept = {}
        save = Trainer.save_checkpoint

        def saving(trainer):
            save(trainer)
            kept[trainer.step] = os.path.join(self.folder,
                                              f"kept{trainer.step}")
            shutil.copyfile(os.path.join(trainer.out, "checkpoint.pt"),
                            kept[trainer.step])

        Trainer.save_checkpoint = saving
        try:
            again = train("again")
        finally:
            Trainer.save_checkpoint = save
        self.assert_same(whole, again)
        shutil.copyfile(kept[2], os.path.join(again, "checkpoint.pt"))
        self.assert_same(whole, train("again", "--resume"))

    def test_two_processes_compute_what_one_computes(self):
        alone = self.distill("alone")
        out = os.path.join(self.folder, "two")
        environment = dict(os.environ, PYTHONPATH=ROOM, OMP_NUM_THREADS="1")
        # PyTorch 1.13's torchrun cannot read its own defaults for --redirects
        # and --tee on Python 3.11; a rule for a process that does not exist
        # leaves all alone.
        result = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run",
             "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0",
             "--redirects", "9:1", "--tee", "9:1", "--nproc_per_node=2", "-m",
             "binarymos_train", *self.arguments(out)],
            env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("2 process(es)", result.stdout)
        self.assert_same(alone, out)

    @unittest.skipUnless(torch.__version__.startswith("1."),
                         "newer PyTorch can shard")
    def test_sharding_says_which_pytorch_it_needs(self):
        with self.assertRaisesRegex(SystemExit, "PyTorch 2.6"):
            self.distill("out", "--fsdp")

    def test_reads_text_and_keeps_the_best_on_held_out_text(self):
        import sentencepiece
        text = os.path.join(self.folder, "text.txt")
        with open(text, "w", encoding="utf-8") as file:
            for i in range(60):
                file.write(f"The {i}th cat sat on mat {i * 7}.\n\n")
        sentencepiece.SentencePieceTrainer.train(
            input=text, model_prefix=os.path.join(self.teacher, "tokenizer"),
            vocab_size=64, hard_vocab_limit=False, model_type="bpe",
            minloglevel=2)
        self.data = text
        out = self.distill("out", "--valid", text, "--eval-every", "3",
                           "--patience", "5")
        self.assertIn("step 3: held-out perplexity", self.said)
        self.assertTrue(os.path.exists(os.path.join(out, "tokenizer.model")))


if __name__ == "__main__":
    unittest.main()
