"""Text to token streams, and which tokens a training step sees."""

import os

import numpy as np
import torch


def load_tokenizer(model_dir):
    import sentencepiece  # not needed to train on .npy files
    return sentencepiece.SentencePieceProcessor(
        model_file=os.path.join(model_dir, "tokenizer.model"))


def read_tokens(paths, model_dir):
    """One stream of token ids from several files, int64.

    A `.npy` file holds ids. Any other file is UTF-8 text whose documents are
    separated by blank lines; each becomes BOS, text, EOS.
    """
    streams, tokenizer = [], None
    for path in paths:
        if path.endswith(".npy"):
            streams.append(np.load(path).astype(np.int64))
            continue
        tokenizer = tokenizer or load_tokenizer(model_dir)
        with open(path, encoding="utf-8") as file:
            documents = [d.strip("\n") for d in file.read().split("\n\n")]
        for document in filter(None, documents):
            streams.append(np.array(
                [tokenizer.bos_id(), *tokenizer.encode(document),
                 tokenizer.eos_id()], dtype=np.int64))
    if not streams:
        raise ValueError(f"no tokens in {', '.join(paths)}")
    return np.concatenate(streams)


class Windows:
    """Cuts a stream into windows, shuffled anew in every epoch.

    What a step sees depends on (seed, step) only: not on what ran before it,
    so a resumed run sees the same, and not on the number of processes.
    """

    def __init__(self, tokens, window, seed):
        self.tokens, self.window, self.seed = tokens, window, seed
        # One window is given up so that every epoch can start at another place.
        self.per_epoch = (len(tokens) - 1) // window - 1
        if self.per_epoch < 1:
            raise ValueError(f"{len(tokens)} tokens are too few for windows "
                             f"of {window}: give more text or --window")
        self._epoch = None

    def _start(self, index):
        epoch, index = divmod(index, self.per_epoch)
        if self._epoch != epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._shift = random.integers(self.window)
            self._order = random.permutation(self.per_epoch)
            self._epoch = epoch
        return self._shift + self._order[index] * self.window

    def batch(self, first, count):
        """Windows first .. first + count of the endless sequence:
        [count, window + 1] int64; the last token is only ever a target."""
        rows = []
        for index in range(first, first + count):
            start = self._start(index)
            rows.append(self.tokens[start:start + self.window + 1])
        return torch.from_numpy(np.stack(rows))
