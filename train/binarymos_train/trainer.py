"""The training loop that the float teacher and the BinaryMoS student share."""

import dataclasses
import json
import math
import os
import sys
import time

import torch

from .parallel import Processes


@dataclasses.dataclass
class TrainOptions:
    steps: int
    batch: int           # windows in one step, all processes together
    micro_batch: int     # windows in one forward pass
    window: int          # tokens in one window
    lr: float            # the highest, reached after the warm-up
    warmup: float = 0.03         # part of the steps
    weight_decay: float = 0.0    # on matrices
    clip: float = 0.0            # largest norm of the gradient; 0: any
    seed: int = 0
    eval_every: int = 0          # steps; 0: never
    patience: int = 0            # evaluations without a better one; 0: any
    checkpoint_every: int = 0    # steps; 0: never
    bf16: bool = False           # autocast
    max_seconds: float = 0.0     # of training, evaluations included; 0: any

    def validate(self, num_processes):
        if self.batch % (self.micro_batch * num_processes):
            raise ValueError(
                f"--batch {self.batch} must be a multiple of --micro-batch "
                f"{self.micro_batch} times {num_processes} processes")
        if self.patience and not self.eval_every:
            raise ValueError("--patience needs --eval-every")
        if self.max_seconds and num_processes > 1:
            raise ValueError("--max-seconds needs a single process: the clocks "
                             "of several do not agree")


def learning_rate(options, step, seconds=0.0):
    """Linear warm-up, then a cosine that ends at zero after the last step, or
    after `max_seconds` if the steps are slower than that."""
    warmup = max(1, round(options.warmup * options.steps))
    if step < warmup:
        return options.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, options.steps - warmup)
    if options.max_seconds:
        done = max(done, min(1.0, seconds / options.max_seconds))
    return options.lr * 0.5 * (1 + math.cos(math.pi * done))


def to_device(rows, device):
    """A GPU copies while it still computes the step before."""
    if device.type != "cuda":
        return rows.to(device)
    return rows.pin_memory().to(device, non_blocking=True)


class Trainer:
    """Minimises `loss_of(model, windows [n, window + 1])`, a scalar and a dict
    of its parts to report.

    Parameters that require no gradient are frozen. `evaluate(model)`, where
    given, returns a number of which less is better; the best model is kept in
    OUT/best.pt and loaded at the end.
    """

    def __init__(self, model, windows, loss_of, options, out, evaluate=None,
                 processes=None):
        self.processes = processes or Processes()
        options.validate(self.processes.count)
        self.model, self.windows, self.loss_of = model, windows, loss_of
        self.options, self.out, self.evaluate = options, out, evaluate
        self.trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in self.trained if p.dim() == 2]
        others = [p for p in self.trained if p.dim() != 2]
        groups = [{"params": matrices, "weight_decay": options.weight_decay},
                  {"params": others, "weight_decay": 0.0}]
        on_gpu = self.trained[0].device.type == "cuda"
        # One kernel for all parameters where there is one.
        fused = {"fused": True} if on_gpu else {}
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=options.lr,
            betas=(0.9, 0.95), **fused)
        # Reading a loss waits for the GPU, so there it is done now and then.
        self.check_every = 50 if on_gpu else 1
        self.step = 0
        self.seconds = 0.0
        self.best = math.inf
        self.worse = 0  # evaluations since the best one
        os.makedirs(out, exist_ok=True)

    # -- one step ---------------------------------------------------------

    def gradients(self):
        """Leaves the mean gradient of the step in `.grad`; returns the means
        of the loss's parts, which are tensors still."""
        options, processes = self.options, self.processes
        count = options.batch // (options.micro_batch * processes.count)
        device = self.trained[0].device
        self.optimizer.zero_grad(set_to_none=True)
        sums = {}
        for micro in range(processes.rank * count,
                           (processes.rank + 1) * count):
            # Dropout too depends on (seed, step, micro-batch) only.
            torch.manual_seed((options.seed << 44) + (self.step << 12) + micro)
            first = self.step * options.batch + micro * options.micro_batch
            rows = to_device(self.windows.batch(first, options.micro_batch),
                             device)
            with torch.autocast(device.type, torch.bfloat16,
                                enabled=options.bf16):
                loss, parts = self.loss_of(self.model, rows)
            (loss / count).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / count
        processes.average_gradients(self.trained)
        return {name: processes.average(value)
                for name, value in sums.items()}

    def train_step(self):
        parts = self.gradients()
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_(self.trained, self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step, self.seconds)
        self.optimizer.step()
        self.step += 1
        if self.step % self.check_every == 0:
            self.check_finite(parts)
        return parts

    def check_finite(self, parts):
        """A loss that was not finite once stays so."""
        parts = {name: float(value) for name, value in parts.items()}
        if not all(math.isfinite(value) for value in parts.values()):
            raise FloatingPointError(
                f"loss is {parts} in step {self.step}: lower --lr, or --clip")

    # -- checkpoints ------------------------------------------------------

    def _path(self, name):
        return os.path.join(self.out, name)

    def _fingerprint(self):
        """What must be the same for a resumed run to be the same run."""
        values = dataclasses.asdict(self.options)
        del values["checkpoint_every"]
        return json.dumps(values, sort_keys=True)

    def save_checkpoint(self):
        model, optimizer = self.processes.full_state(self.model,
                                                     self.optimizer)
        if self.processes.rank == 0:
            state = {"options": self._fingerprint(), "step": self.step,
                     "seconds": self.seconds, "best": self.best,
                     "worse": self.worse, "model": model,
                     "optimizer": optimizer}
            torch.save(state, self._path("checkpoint.pt.tmp"))
            os.replace(self._path("checkpoint.pt.tmp"),
                       self._path("checkpoint.pt"))

    def resume(self):
        """Continues from OUT/checkpoint.pt; False if there is none."""
        if not os.path.exists(self._path("checkpoint.pt")):
            return False
        state = torch.load(self._path("checkpoint.pt"), map_location="cpu")
        if state["options"] != self._fingerprint():
            raise ValueError(f"{self._path('checkpoint.pt')} was written with "
                             f"other options: {state['options']}")
        self.processes.load_full_state(self.model, self.optimizer,
                                       state["model"], state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.best, self.worse = state["best"], state["worse"]
        return True

    def _keep_if_best(self):
        """Evaluates; False once patience has run out."""
        value = self.evaluate(self.model)
        self.worse += 1
        if value < self.best:
            self.best, self.worse = value, 0
            model, _ = self.processes.full_state(self.model, self.optimizer)
            if self.processes.rank == 0:
                torch.save(model, self._path("best.pt.tmp"))
                os.replace(self._path("best.pt.tmp"), self._path("best.pt"))
        self._say(f"step {self.step}: held-out perplexity {value:.3f} "
                  f"(best {self.best:.3f})")
        return not self.options.patience or self.worse < self.options.patience

    # -- the loop ---------------------------------------------------------

    def run(self):
        """Trains to the last step, or until patience or time runs out."""
        options = self.options
        self.model.train()
        progress = Progress(options, self.processes)
        going = (not options.patience or self.worse < options.patience) \
            and not self.late()
        while self.step < options.steps and going:
            began = time.monotonic()
            parts = self.train_step()
            spent = self.seconds + time.monotonic() - began
            last = self.step == options.steps or self.late(spent)
            if self.evaluate and options.eval_every and (
                    last or self.step % options.eval_every == 0):
                going = self._keep_if_best()
            self.seconds += time.monotonic() - began
            going = going and not last
            progress.report(self.step, parts,
                            learning_rate(options, self.step - 1, spent), last)
            if options.checkpoint_every and (
                    not going or self.step % options.checkpoint_every == 0):
                self.check_finite(parts)
                self.save_checkpoint()
        if os.path.exists(self._path("best.pt")) and self.evaluate:
            self.processes.load_full_model(
                self.model, torch.load(self._path("best.pt"),
                                       map_location="cpu"))
        self.model.eval()

    def late(self, seconds=None):
        """Whether `max_seconds` have been spent."""
        seconds = self.seconds if seconds is None else seconds
        return 0 < self.options.max_seconds <= seconds

    def _say(self, text):
        if self.processes.rank == 0:
            print(text, flush=True)


class Progress:
    """Loss, tokens per second and time to go: a line that is rewritten on a
    terminal, a line in every `interval` seconds elsewhere."""

    def __init__(self, options, processes, interval=15.0):
        self.options, self.quiet = options, processes.rank != 0
        self.terminal = sys.stdout.isatty()
        self.interval = 0.5 if self.terminal else interval
        self.mark = None  # (step, time) of the last report

    def report(self, step, parts, lr, last):
        now = time.monotonic()
        if self.mark is None:
            self.mark = (step, now)
        if self.quiet or (now - self.mark[1] < self.interval and not last):
            return
        steps, seconds = step - self.mark[0], now - self.mark[1]
        self.mark = (step, now)
        pace = steps / seconds if seconds > 0 else float("nan")
        speed = pace * self.options.batch * self.options.window
        to_go = (self.options.steps - step) / pace if steps else float("nan")
        losses = " ".join(f"{k} {float(v):.4f}" for k, v in parts.items())
        eta = "?" if math.isnan(to_go) else \
            f"{int(to_go // 60)}:{int(to_go % 60):02d}"
        line = (f"step {step}/{self.options.steps} {losses} lr {lr:.2e} "
                f"{speed:.0f} tokens/s ETA {eta}")
        if self.terminal:
            print("\r" + line.ljust(79), end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)
