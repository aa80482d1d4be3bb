"""Perplexity as the BinaryMoS authors measure it."""

import argparse
import math

import torch
from torch.nn import functional as F

from .checkpoint import load_model
from .data import load_tokenizer


_TOKENS_AT_ONCE = 2048


def perplexity(model, tokens, window):
    """exp of the mean, over full non-overlapping windows, of each window's
    mean negative log-likelihood. The tokens after the last full window do not
    count. The model is left in the mode it was in."""
    count = len(tokens) // window
    if count == 0:
        raise ValueError(f"{len(tokens)} tokens do not fill one window of "
                         f"{window}")
    training = model.training
    device = next(model.parameters()).device
    rows = torch.as_tensor(tokens[:count * window]).view(count, window)
    model.eval()
    total = 0.0
    with torch.no_grad():
        for some in rows.split(max(1, _TOKENS_AT_ONCE // window)):
            some = some.to(device)
            logits = model(some)[0][:, :-1].float()
            # Windows have one length, so their mean is the mean of them all.
            total += len(some) * float(F.cross_entropy(
                logits.flatten(0, 1), some[:, 1:].flatten()))
    model.train(training)
    return math.exp(total / count)


def read_protocol_tokens(path, model_dir):
    """The whole file as one text, BOS once."""
    tokenizer = load_tokenizer(model_dir)
    with open(path, encoding="utf-8") as file:
        return [tokenizer.bos_id()] + tokenizer.encode(file.read())


def main(argv=None):
    parser = argparse.ArgumentParser(prog="binarymos_train.perplexity",
                                     description=__doc__)
    parser.add_argument("model", help="directory in the published layout")
    parser.add_argument("file", nargs="+", help="UTF-8 text")
    parser.add_argument("--window", type=int, default=0,
                        help="tokens; default min(2048, max positions)")
    args = parser.parse_args(argv)
    model = load_model(args.model)
    window = args.window or min(2048, model.config.max_position_embeddings)
    for path in args.file:
        tokens = read_protocol_tokens(path, args.model)
        print(f"{path}: perplexity {perplexity(model, tokens, window):.4f} "
              f"({len(tokens) // window} windows of {window})", flush=True)


if __name__ == "__main__":
    main()
