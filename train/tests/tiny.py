"""Models and data that are small enough for a test."""

import os

import numpy as np
import torch

from binarymos_train import checkpoint
from binarymos_train.config import LlamaConfig
from binarymos_train.model import Llama


def config(**changes):
    values = dict(vocab_size=64, hidden_size=16, intermediate_size=24,
                  num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=16,
                  tie_word_embeddings=True)
    return LlamaConfig(**{**values, **changes})


def teacher(seed=0, **changes):
    model = Llama(config(**changes))
    model.init_weights(torch.Generator().manual_seed(seed), std=0.3)
    return model


def write_teacher(folder, **changes):
    """A teacher in the published layout and tokens to train on; returns
    (model directory, token file)."""
    model_dir = os.path.join(folder, "teacher")
    checkpoint.save_model(model_dir, teacher(**changes))
    data = os.path.join(folder, "tokens.npy")
    random = np.random.default_rng(5)
    np.save(data, random.integers(0, 64, 2000).astype(np.uint16))
    return model_dir, data


def parameters_of(model_dir):
    return {name: p.detach()
            for name, p in checkpoint.load_model(model_dir).named_parameters()}
