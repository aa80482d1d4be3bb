"""Trains a float LLaMA from scratch: a teacher where none is at hand."""

import argparse

import torch
from torch.nn import functional as F

from . import cli
from .config import LlamaConfig
from .model import Llama
from .trainer import Trainer


def next_token_loss(model, rows):
    logits, _ = model(rows[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
    return loss, {"loss": loss}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="binarymos_train.teacher",
                                     description=__doc__)
    parser.add_argument("--config", required=True, metavar="DIR",
                        help="config.json and tokenizer.model of the model")
    parser.add_argument("--dropout", type=float, default=0.0)
    cli.add_arguments(parser, lr=1e-3, weight_decay=0.1, clip=1.0)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    job = cli.Job(args, args.config)
    model = Llama(LlamaConfig.load(args.config), args.dropout)
    model.init_weights(torch.Generator().manual_seed(args.seed))
    model = job.processes.place(model.to(job.device))
    trainer = Trainer(model, job.windows, next_token_loss,
                      job.options, args.out, job.evaluate, job.processes)
    job.train(trainer, companions_from=args.config)


if __name__ == "__main__":
    main()
