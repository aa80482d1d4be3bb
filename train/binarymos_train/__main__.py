"""Turns a float LLaMA into a BinaryMoS one by distillation."""

import argparse

from . import cli
from .checkpoint import load_model, make_student
from .distill import DistillationLoss, freeze_all_but_linears
from .trainer import Trainer


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="binarymos_train",
                                     description=__doc__)
    parser.add_argument("--teacher", required=True, metavar="DIR",
                        help="float LLaMA in the Hugging Face layout, with "
                        "its tokenizer.model")
    parser.add_argument("--experts", type=int, default=4,
                        help="scale sets per linear layer, 1 to 8 (default 4)")
    cli.add_arguments(parser, lr=2e-5, weight_decay=0.0, clip=0.0)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    job = cli.Job(args, args.teacher)
    teacher = load_model(args.teacher)
    student = make_student(teacher, args.experts, args.seed)
    freeze_all_but_linears(student)
    teacher = job.processes.place(teacher.to(job.device))
    student = job.processes.place(student.to(job.device))
    trainer = Trainer(student, job.windows, DistillationLoss(teacher),
                      job.options, args.out, job.evaluate, job.processes)
    job.train(trainer, companions_from=args.teacher)


if __name__ == "__main__":
    main()
