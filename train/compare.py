#!/usr/bin/python3
"""Trains the small models of the table in docs/quality.md, and makes the table.

  train/compare.py --train fairy-tales.train.txt --valid fairy-tales.valid.txt \
      --work DIR --binarymos build/auto/bin/binarymos

For each of three seeds: a float teacher, and from it BinaryMoS with four
experts and with one (OneBit) by the same recipe. The runs of a stage go side by
side on a GPU, one after the other on a CPU. A run whose result lies in --work
is not repeated, and one that was interrupted continues.

The table is of perplexities that `binarymos perplexity` measures, on as much of
the training text, from its start, as there is held-out text. Its fourth row is
the teacher through `binarymos convert --method onebit`, not trained. Without
--binarymos there is no table.
"""

import argparse
import json
import os
import statistics
import subprocess

import tales
from binarymos_train import parallel
from binarymos_train.config import LlamaConfig

SEEDS = (1, 2, 3)
# 1.9 million parameters, 1.1 of them in binary layers; the tokenizer of tales.
CONFIG = LlamaConfig(
    vocab_size=3072, hidden_size=256, intermediate_size=512,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
    max_position_embeddings=512, tie_word_embeddings=True)
# Windows of 512 tokens; one epoch of the text is 115 steps.
TEACHER = {"--steps": 3450, "--batch": 8, "--lr": 3e-3, "--dropout": 0.1,
           "--weight-decay": 0.1, "--eval-every": 115, "--patience": 5}
STUDENT = {"--steps": 2500, "--batch": 8, "--lr": 1e-3, "--eval-every": 250}
STUDENTS = {"binarymos": 4, "onebit": 1}  # experts
# Row of the table: (how it is called, the run, the method of conversion).
ROWS = (("Float16 teacher", "teacher", None),
        ("BinaryMoS, E = 4", "binarymos", "auto"),
        ("OneBit, E = 1", "onebit", "auto"),
        ("`--method onebit`, not trained", "teacher", "onebit"))


def run_all(commands, args):
    """`commands`: (module, options, directory). Those of a GPU share it."""
    if parallel.pick_device(args.device).type == "cuda":
        tales.finish([tales.start(module, options, args, out)
                      for module, options, out in commands])
        return
    for module, options, out in commands:
        tales.finish([tales.start(module, options, args, out)])


def beginning_of_train(args):
    """A file with the first lines of the training text."""
    path, size = os.path.join(args.work, "train.txt"), os.path.getsize(
        args.valid)
    with open(args.train, "rb") as source, open(path, "wb") as target:
        target.write(source.read(size).rpartition(b"\n")[0] + b"\n")
    return path


def measure(args, texts, folder, method):
    """The perplexity on each of `texts`."""
    if method:
        packed = f"{folder}.{method}"
        if not os.path.exists(packed):
            subprocess.run([args.binarymos, "convert", "--method", method,
                            folder, packed], check=True, capture_output=True)
        folder = packed
    values = []
    for text in texts:
        result = subprocess.run([args.binarymos, "perplexity", "--json",
                                 "--device", "cpu", folder, text], check=True,
                                stdout=subprocess.PIPE)
        values.append(json.loads(result.stdout)["perplexity"])
    return values


def print_table(args, folder):
    texts = (beginning_of_train(args), args.valid)
    print("| | training text | held out | held out, by seed |")
    print("|---|---|---|---|")
    for title, name, method in ROWS:
        pairs = [measure(args, texts, folder(name, seed), method)
                 for seed in SEEDS]
        cells = [f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}"
                 for v in zip(*pairs)]
        cells.append(", ".join(f"{valid:.2f}" for _, valid in pairs))
        print("|", " | ".join([title, *cells]), "|", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tales.add_arguments(parser)
    parser.add_argument("--binarymos", help="the program that measures")
    args = parser.parse_args()

    def folder(name, seed):
        return os.path.join(args.work, f"{name}-{seed}")

    start = os.path.join(args.work, "start")
    tales.write_start(CONFIG, args.train, start)
    run_all([("binarymos_train.teacher",
              tales.run_options(args, {"--config": start, **TEACHER,
                                       "--seed": seed}),
              folder("teacher", seed)) for seed in SEEDS], args)
    run_all([("binarymos_train",
              tales.run_options(args, {
                  "--teacher": folder("teacher", seed), **STUDENT,
                  "--seed": seed, "--experts": experts}),
              folder(name, seed))
             for seed in SEEDS for name, experts in STUDENTS.items()], args)
    if args.binarymos:
        print_table(args, folder)


if __name__ == "__main__":
    main()
