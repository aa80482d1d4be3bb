"""What the commands that train have in common."""

import os

from . import parallel
from .checkpoint import save_state
from .config import LlamaConfig
from .data import Windows, read_tokens
from .perplexity import perplexity, read_protocol_tokens
from .trainer import TrainOptions


def add_arguments(parser, lr, weight_decay, clip):
    add = parser.add_argument
    add("--data", required=True, nargs="+", metavar="FILE",
        help="text (documents separated by blank lines) or .npy token ids")
    add("--valid", metavar="FILE", help="held-out text: keep the model with "
        "the lowest perplexity on it")
    add("--out", required=True, metavar="DIR")
    add("--steps", type=int, required=True)
    add("--batch", type=int, default=8,
        help="windows in one step, all processes together (default 8)")
    add("--micro-batch", type=int, default=0,
        help="windows in one forward pass (default: --batch / processes)")
    add("--window", type=int, default=0,
        help="tokens in one window (default min(2048, max positions))")
    add("--lr", type=float, default=lr, help=f"(default {lr})")
    add("--warmup", type=float, default=0.03,
        help="part of the steps (default 0.03)")
    add("--weight-decay", type=float, default=weight_decay,
        help=f"on matrices (default {weight_decay})")
    add("--clip", type=float, default=clip,
        help=f"largest norm of the gradient; 0: any (default {clip})")
    add("--seed", type=int, default=0)
    add("--eval-every", type=int, default=0, metavar="STEPS",
        help="measure --valid; default: ten times in the run")
    add("--patience", type=int, default=0, metavar="N",
        help="stop after N measurements without a better one (default: never)")
    add("--checkpoint-every", type=int, default=0, metavar="STEPS",
        help="default: ten times in the run")
    add("--resume", action="store_true",
        help="continue from the checkpoint in --out, if there is one")
    add("--max-seconds", type=float, default=0.0, metavar="SECONDS",
        help="stop after this time of training; the learning rate reaches "
        "zero then (default: any)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--fsdp", action="store_true",
        help="shard the models over the processes of torchrun (untested on "
        "GPUs; needs PyTorch 2.6)")


class Job:
    """Data, device, processes and options of a command."""

    def __init__(self, args, model_dir):
        self.args, self.model_dir = args, model_dir
        self.device = parallel.pick_device(args.device)
        if args.fsdp:
            from . import fsdp  # needs a newer PyTorch than the rest
            self.processes = fsdp.ShardedProcesses(self.device)
        else:
            self.processes = parallel.from_environment(self.device)
        config = LlamaConfig.load(model_dir)
        window = args.window or min(2048, config.max_position_embeddings)
        tenth = max(1, args.steps // 10)
        self.options = TrainOptions(
            steps=args.steps, batch=args.batch,
            micro_batch=args.micro_batch or args.batch // self.processes.count,
            window=window, lr=args.lr, warmup=args.warmup,
            weight_decay=args.weight_decay, clip=args.clip, seed=args.seed,
            eval_every=(args.eval_every or tenth) if args.valid else 0,
            patience=args.patience,
            checkpoint_every=args.checkpoint_every or tenth, bf16=args.bf16,
            max_seconds=args.max_seconds)
        tokens = read_tokens(args.data, model_dir)
        self.windows = Windows(tokens, window, args.seed)
        self.evaluate = None
        if args.valid:
            held_out = read_protocol_tokens(args.valid, model_dir)
            self.evaluate = lambda model: perplexity(model, held_out, window)
        elif args.eval_every or args.patience:
            raise ValueError("--eval-every and --patience need --valid")
        self.say(f"{len(tokens)} tokens, {self.windows.per_epoch} windows of "
                 f"{window}; {args.steps} steps are "
                 f"{args.steps * args.batch / self.windows.per_epoch:.1f} "
                 f"epochs; {self.processes.count} process(es), {self.device}")

    def say(self, text):
        if self.processes.rank == 0:
            print(text, flush=True)

    def train(self, trainer, companions_from):
        """Runs the trainer and writes the model to --out."""
        if self.args.resume and trainer.resume():
            self.say(f"resumed after step {trainer.step}")
        trainer.run()
        state, _ = self.processes.full_state(trainer.model, None)
        if self.processes.rank == 0:
            save_state(self.args.out, trainer.model.config, state,
                       companions_from)
            with open(os.path.join(self.args.out, "training.txt"), "w",
                      encoding="utf-8") as file:
                file.write(f"seconds {trainer.seconds:.0f}\n"
                           f"steps {trainer.step}\n"
                           f"best held-out perplexity {trainer.best:.4f}\n")
        self.say(f"wrote {self.args.out} after {trainer.seconds:.0f} s")
