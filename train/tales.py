#!/usr/bin/python3
"""Trains the demonstration model, models/tales.

  train/tales.py --train fairy-tales.train.txt --valid fairy-tales.valid.txt \
      --work DIR --out models/tales

Tokenizer, float teacher, BinaryMoS student, packed model, model card: minutes
on a GPU, days on a CPU. A stage whose result lies in --work is not repeated,
and one that was interrupted continues, so the command may be given again.
Seeds are fixed.
"""

import argparse
import os
import subprocess
import sys
import time

ROOM = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, ROOM)

from binarymos_train import (  # noqa: E402
    checkpoint, manifest, pack, parallel, quality)
from binarymos_train.config import LlamaConfig  # noqa: E402

# 19.6 million parameters, 18.0 of them in binary layers: 6.1 MB packed. Input
# sizes are multiples of 256.
CONFIG = LlamaConfig(
    vocab_size=3072, hidden_size=512, intermediate_size=1536,
    num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2,
    max_position_embeddings=512, tie_word_embeddings=True)
# Windows of 512 tokens; one epoch of the text is 57 steps.
TEACHER = {"--steps": 1600, "--batch": 16, "--lr": 1e-3, "--dropout": 0.3,
           "--weight-decay": 0.3, "--eval-every": 57, "--patience": 5,
           "--seed": 1}
STUDENT = {"--steps": 2500, "--batch": 16, "--lr": 1e-3, "--eval-every": 125,
           "--seed": 2, "--experts": 4}


def train_tokenizer(text, folder, vocab_size):
    """sentencepiece BPE in the manner of LLaMA: bytes for what it does not
    know, text unchanged."""
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=os.path.join(folder, "tokenizer"),
        vocab_size=vocab_size, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True,
        max_sentence_length=100000, num_threads=1, minloglevel=2)


def write_start(config, text, folder):
    """The directory that a teacher starts from."""
    if os.path.exists(os.path.join(folder, "config.json")):
        return
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(os.path.join(folder, "tokenizer.model")):
        train_tokenizer(text, folder, config.vocab_size)
    checkpoint.write_json(
        os.path.join(folder, "generation_config.json"),
        {"bos_token_id": config.bos_token_id,
         "eos_token_id": config.eos_token_id, "do_sample": True,
         "temperature": 0.8})
    checkpoint.write_json(os.path.join(folder, "config.json"),
                          config.to_json())


def is_trained(out):
    return os.path.exists(os.path.join(out, "model.safetensors"))


def start(module, options, args, out):
    """A training command in a process of its own; None if it is done."""
    if is_trained(out):
        return None
    command = [sys.executable, "-m", module, "--data", args.train, "--valid",
               args.valid, "--out", out, "--device", args.device, "--resume"]
    for name, value in options.items():
        command += [name] if value is True else [name, str(value)]
    path = os.pathsep.join(filter(None, (ROOM, os.environ.get("PYTHONPATH"))))
    print("==", *command[1:], flush=True)
    return subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=path))


def finish(processes):
    """Waits for training commands; raises if one failed."""
    for process in filter(None, processes):
        if process.wait():
            raise SystemExit(f"{' '.join(process.args)}: status "
                             f"{process.returncode}")


CARD = """# tales

A LLaMA of {parameters:.1f} million parameters that tells fairy tales, with
BinaryMoS linear layers (4 experts). It is here so that everything in this
repository can be tried without a download; it is not a useful model. It knows
English as 19th-century tales have it, and nothing else.

Made by `train/tales.py`, in float and then in binary, from seeds that are
fixed; nothing in it was taken from another model.

| | perplexity, training text | perplexity, held out | words known | worst repetition |
|---|---|---|---|---|
| float16 teacher | {teacher[train]:.2f} | {teacher[valid]:.2f} | {teacher[known]:.2%} | {teacher[worst]} |
| BinaryMoS E = 4 (this model) | {student[train]:.2f} | {student[valid]:.2f} | {student[known]:.2%} | {student[worst]} |

Perplexity by the authors' protocol in windows of {window} tokens, in PyTorch.
The last two columns are of 50 samples of 128 tokens at temperature 0.8: how
many of their words occur in the training text (of {student[words]} here), and
how often the commonest run of four words occurs in one sample. Texts of
another tokenizer's models have other perplexities: these are per token.

## Data

375 tales for training and 27 held out (every fifteenth): the Brothers Grimm in
the 19th-century English translations by Margaret Hunt and Lucy Crane, Joseph
Jacobs' English Fairy Tales (Project Gutenberg eBook 7439) and The Aesop for
Children (1919, Library of Congress). All are in the public domain in the
United States. Headers, illustrations and notes were removed and quotes made
ASCII; one paragraph a line, a blank line between tales, the title first. The
text itself is not in this repository.

## Recipe

Tokenizer: sentencepiece BPE, {vocabulary} pieces, bytes for the rest. Hidden
size {hidden}, {layers} layers, {heads} heads ({kv} for keys and values), inner
size {inner}, tied embeddings, {window} positions.

| | options | steps taken | seconds |
|---|---|---|---|
| teacher | {teacher_options} | {teacher_steps} | {teacher_seconds:.0f} |
| student | {student_options} | {student_steps} | {student_seconds:.0f} |

Windows of {window} tokens, on {machine}. The student learns from the teacher
only, as `train/README.md` states. Of each run, the model with the lowest
held-out perplexity is kept, so the held-out text is not quite unseen.

    train/tales.py --train TRAIN.txt --valid VALID.txt --work DIR \\
        --out models/tales{limits}

## Licence

Apache-2.0, as the rest of the repository.
"""


def training_facts(folder):
    """(steps, seconds) of a finished run."""
    with open(os.path.join(folder, "training.txt"), encoding="utf-8") as file:
        facts = dict(line.rsplit(" ", 1) for line in file)
    return int(facts["steps"]), float(facts["seconds"])


def machine(device):
    import torch
    if parallel.pick_device(device).type == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} threads of a CPU"


def write_card(args, runs, figures):
    """`runs`: {"teacher" or "student": (directory, options)}."""
    facts = {}
    for name, (folder, options) in runs.items():
        facts[name] = figures[folder]
        facts[name + "_steps"], facts[name + "_seconds"] = training_facts(
            folder)
        facts[name + "_options"] = " ".join(
            f"`{key}`" if value is True else f"`{key} {value}`"
            for key, value in options.items())
    teacher = checkpoint.load_model(runs["teacher"][0])
    card = CARD.format(
        parameters=sum(p.numel() for p in teacher.parameters()) / 1e6,
        window=CONFIG.max_position_embeddings,
        vocabulary=CONFIG.vocab_size, hidden=CONFIG.hidden_size,
        layers=CONFIG.num_hidden_layers, heads=CONFIG.num_attention_heads,
        kv=CONFIG.num_key_value_heads, inner=CONFIG.intermediate_size,
        machine=machine(args.device), limits=(
            " --max-seconds {:g} {:g}".format(*args.max_seconds)
            if any(args.max_seconds) else ""), **facts)
    with open(os.path.join(args.out, "README.md"), "w",
              encoding="utf-8") as file:
        file.write(card)


def add_arguments(parser):
    add = parser.add_argument
    add("--train", required=True, help="text, tales separated by blank lines")
    add("--valid", required=True, help="held-out text")
    add("--work", required=True, help="checkpoints, teachers and students")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--steps", type=int, help="of every run, for a try")


def run_options(args, recipe, **more):
    """The options of a run: the recipe's, and those of this call."""
    options = {**recipe, **more}
    if args.steps:
        options.update({"--steps": args.steps, "--eval-every": args.steps})
    return options


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    add = parser.add_argument
    add("--out", required=True, help="the packed model")
    add("--max-seconds", type=float, nargs=2, default=(0, 0),
        metavar=("TEACHER", "STUDENT"),
        help="the learning rate reaches zero by then (default: any)")
    return parser.parse_args()


def main():
    args = parse_arguments()
    begin, teacher, student = (os.path.join(args.work, name)
                               for name in ("start", "teacher", "student"))
    began = time.monotonic()
    on_gpu = parallel.pick_device(args.device).type == "cuda"
    more = {"--bf16": True} if on_gpu else {}
    runs = {}
    for name, folder, recipe, limit in zip(
            ("teacher", "student"), (teacher, student), (TEACHER, STUDENT),
            args.max_seconds):
        runs[name] = (folder, run_options(
            args, recipe, **more, **({"--max-seconds": limit} if limit
                                     else {})))
    write_start(CONFIG, args.train, begin)
    finish([start("binarymos_train.teacher",
                  {"--config": begin, **runs["teacher"][1]}, args, teacher)])
    finish([start("binarymos_train",
                  {"--teacher": teacher, **runs["student"][1]}, args,
                  student)])
    pack.main([student, args.out])
    figures = quality.main([teacher, student, "--train", args.train,
                            "--valid", args.valid, "--device", args.device])
    write_card(args, runs, figures)
    manifest.write(args.out)  # again: with the card
    print(f"{time.monotonic() - began:.0f} s in this call", flush=True)


if __name__ == "__main__":
    main()
