#!/usr/bin/python3
"""Trains the demonstration model, models/tales.

  train/tales.py --train fairy-tales.train.txt --valid fairy-tales.valid.txt \
      --work DIR --out models/tales

Tokenizer, float teacher, BinaryMoS student, packed model, quality report. A
stage whose result lies in --work is not repeated, and one that was interrupted
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
    each: on a busy CPU that is twice as fast as one process of two threads."""
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
    quality.main([teacher, student, "--train", args.train,
                  "--valid", args.valid])
    print(f"{time.monotonic() - began:.0f} s in this call", flush=True)


if __name__ == "__main__":
    main()
