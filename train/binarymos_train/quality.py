"""Perplexities, and what samples of a model look like: how many of their words
occur in the training text, and how often they repeat themselves."""

import argparse
import collections
import re

import torch

from . import parallel
from .checkpoint import load_model
from .data import load_tokenizer
from .perplexity import perplexity, read_protocol_tokens

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
# Half of the samples start from nothing, half from a common opening.
PROMPTS = ("", "Once upon a time")


def words(text):
    return [word.lower() for word in _WORD.findall(text)]


def most_repeated(sequence, length=4):
    """How often the commonest run of `length` entries occurs."""
    runs = collections.Counter(
        tuple(sequence[i:i + length])
        for i in range(len(sequence) - length + 1))
    return max(runs.values(), default=0)


def sample(model, prompts, count, temperature, seed, eos):
    """[len(prompts), count] new token ids; the end of a text is never drawn.
    Rows advance together, so prompts must have one length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(prompts, device=next(model.parameters()).device)
    with torch.no_grad():
        for _ in range(count):
            logits = model(tokens)[0][:, -1] / temperature
            logits[:, eos] = float("-inf")
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1,
                                      generator=generator)
            tokens = torch.cat((tokens, drawn.to(tokens.device)), dim=1)
    return tokens[:, -count:].tolist()


def sample_report(model, tokenizer, known, args):
    """Draws args.samples texts; returns (known words, words, the worst
    repetition in any sample, the texts)."""
    texts = []
    for index, prompt in enumerate(PROMPTS):
        count = args.samples // len(PROMPTS)
        start = [tokenizer.bos_id()] + tokenizer.encode(prompt)
        rows = sample(model, [start] * count, args.tokens, args.temperature,
                      args.seed + index, tokenizer.eos_id())
        texts += [tokenizer.decode(row) for row in rows]
    hits = total = worst = 0
    for text in texts:
        found = words(text)
        worst = max(worst, most_repeated(found))
        found = found[:-1]  # the last word may be cut off
        hits += sum(word in known for word in found)
        total += len(found)
    return hits, total, worst, texts


def measure(path, args):
    """The figures of one model, and its sampled texts."""
    model, tokenizer = load_model(path).eval(), load_tokenizer(path)
    model.to(parallel.pick_device(args.device))
    window = min(2048, model.config.max_position_embeddings)
    train, valid = (
        perplexity(model, read_protocol_tokens(file, path), window)
        for file in (args.train, args.valid))
    with open(args.train, encoding="utf-8") as file:
        known = set(words(file.read()))
    hits, total, worst, texts = sample_report(model, tokenizer, known, args)
    return {"train": train, "valid": valid, "known": hits / total,
            "words": total, "worst": worst, "texts": texts}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="binarymos_train.quality",
                                     description=__doc__)
    add = parser.add_argument
    add("model", nargs="+", help="directories in the published layout")
    add("--train", required=True, help="training text")
    add("--valid", required=True, help="held-out text")
    add("--samples", type=int, default=50, help="an even number (default 50)")
    add("--tokens", type=int, default=128)
    add("--temperature", type=float, default=0.8)
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--show", type=int, default=0, help="samples to print")
    args = parser.parse_args(argv)
    if args.samples < len(PROMPTS) or args.samples % len(PROMPTS):
        parser.error(f"--samples must be a multiple of {len(PROMPTS)}")
    return args


def main(argv=None):
    """Prints and returns the figures, by model directory."""
    args, figures = parse_arguments(argv), {}
    for path in args.model:
        f = figures[path] = measure(path, args)
        print(f"{path}: perplexity train {f['train']:.2f}, held-out "
              f"{f['valid']:.2f}; {args.samples} samples of {args.tokens} "
              f"tokens at temperature {args.temperature}: {f['known']:.2%} of "
              f"{f['words']} words known, no 4 words in a row more than "
              f"{f['worst']} times in a sample", flush=True)
        for text in f["texts"][:args.show]:
            print("---\n" + text)
    return figures


if __name__ == "__main__":
    main()
