#!/usr/bin/python3
"""Trains the demonstration model, models/tales.

  train/tales.py --train fairy-tales.train.txt --valid fairy-tales.valid.txt \
      --work DIR --out models/tales

Tokenizer, float teacher, BinaryMoS student, packed model, model card. A stage
whose result lies in --work is not repeated, and one that was interrupted
continues, so the command may be given again. Seeds are fixed: the same text,
PyTorch and number of processes give the same model.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time

ROOM = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, ROOM)

from binarymos_train import checkpoint, pack, quality  # noqa: E402
from binarymos_train.config import LlamaConfig  # noqa: E402

# Input sizes are multiples of 256; 4.2 million parameters.
CONFIG = LlamaConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=768,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, tie_word_embeddings=True)
BATCH = 4  # windows of 512 tokens; one epoch of the text is 220 steps
TEACHER = {"--steps": 2200, "--lr": 3e-3, "--dropout": 0.1,
           "--weight-decay": 0.1, "--eval-every": 220, "--patience": 3,
           "--seed": 1}
STUDENT = {"--steps": 1320, "--lr": 1e-3, "--eval-every": 220, "--seed": 2,
           "--experts": 4}


def train_tokenizer(text, folder):
    """sentencepiece BPE in the manner of LLaMA: bytes for what it does not
    know, text unchanged."""
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=os.path.join(folder, "tokenizer"),
        vocab_size=CONFIG.vocab_size, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True,
        max_sentence_length=100000, num_threads=1, minloglevel=2)


def write_start(text, folder):
    """The directory that a teacher starts from."""
    if os.path.exists(os.path.join(folder, "config.json")):
        return
    os.makedirs(folder, exist_ok=True)
    train_tokenizer(text, folder)
    checkpoint.write_json(
        os.path.join(folder, "generation_config.json"),
        {"bos_token_id": CONFIG.bos_token_id,
         "eos_token_id": CONFIG.eos_token_id, "do_sample": True,
         "temperature": 0.8})
    checkpoint.write_json(os.path.join(folder, "config.json"),
                          CONFIG.to_json())


# PyTorch 1.13's torchrun cannot read its own default for these two options on
# Python 3.11; a rule for a process that does not exist leaves all alone.
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv_backend=c10d",
            "--rdzv_endpoint=localhost:0", "--redirects", "9:1", "--tee",
            "9:1"]


def train(module, options, args, out):
    """Runs a training command in `args.processes` processes of one thread
    each, which do not wait for each other within an operator."""
    if os.path.exists(os.path.join(out, "model.safetensors")):
        return
    command = [sys.executable, *TORCHRUN,
               f"--nproc_per_node={args.processes}", "-m", module,
               "--data", args.train, "--valid", args.valid, "--out", out,
               "--batch", str(BATCH), "--device", "cpu",
               "--checkpoint-every", "44", "--resume"]
    command += [str(part) for pair in options.items() for part in pair]
    path = os.pathsep.join(filter(None, (ROOM, os.environ.get("PYTHONPATH"))))
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path)
    print(f"== {module}", flush=True)
    subprocess.run(command, check=True, env=environment)


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
how often the commonest run of four words occurs in one sample.

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

| | options | steps taken | time |
|---|---|---|---|
| teacher | {teacher_options} | {teacher_steps} | {teacher_minutes:.0f} min |
| student | {student_options} | {student_steps} | {student_minutes:.0f} min |

{batch} windows of {window} tokens a step; {processes} process(es) of one CPU
thread each. The student learns from the teacher only, as `train/README.md`
states. Of each run, the model with the lowest held-out perplexity is kept.

    train/tales.py --train TRAIN.txt --valid VALID.txt --work DIR --out models/tales

## Licence

Apache-2.0, as the rest of the repository.
"""


def training_facts(folder):
    """(steps, minutes) of a finished run."""
    with open(os.path.join(folder, "training.txt"), encoding="utf-8") as file:
        facts = dict(line.rsplit(" ", 1) for line in file)
    return int(facts["steps"]), float(facts["seconds"]) / 60


def write_card(args, teacher, student, figures):
    facts = {}
    for name, folder, options in (("teacher", teacher, TEACHER),
                                  ("student", student, STUDENT)):
        facts[name] = figures[folder]
        facts[name + "_steps"], facts[name + "_minutes"] = training_facts(
            folder)
        facts[name + "_options"] = " ".join(
            f"`{key} {value}`" for key, value in options.items())
    parameters = sum(p.numel()
                     for p in checkpoint.load_model(teacher).parameters())
    card = CARD.format(
        parameters=parameters / 1e6, window=CONFIG.max_position_embeddings,
        vocabulary=CONFIG.vocab_size, hidden=CONFIG.hidden_size,
        layers=CONFIG.num_hidden_layers, heads=CONFIG.num_attention_heads,
        kv=CONFIG.num_key_value_heads, inner=CONFIG.intermediate_size,
        batch=BATCH, processes=args.processes, **facts)
    with open(os.path.join(args.out, "README.md"), "w",
              encoding="utf-8") as file:
        file.write(card)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--train", required=True, help="text, tales separated by blank lines")
    add("--valid", required=True, help="held-out text")
    add("--work", required=True, help="checkpoints, teacher and student")
    add("--out", required=True, help="the packed model")
    add("--processes", type=int, default=2, choices=(1, 2, 4))
    return parser.parse_args()


def main():
    args = parse_arguments()
    start, teacher, student = (os.path.join(args.work, name)
                               for name in ("start", "teacher", "student"))
    began = time.monotonic()
    write_start(args.train, start)
    train("binarymos_train.teacher", {"--config": start, **TEACHER}, args,
          teacher)
    train("binarymos_train", {"--teacher": teacher, **STUDENT}, args, student)
    pack.main([student, args.out])
    figures = quality.main([teacher, student, "--train", args.train,
                            "--valid", args.valid])
    write_card(args, teacher, student, figures)
    print(f"{time.monotonic() - began:.0f} s in this call", flush=True)


if __name__ == "__main__":
    main()
