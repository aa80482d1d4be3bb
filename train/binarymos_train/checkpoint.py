"""Model directories in the published (Hugging Face) layout."""

import json
import os
import shutil

import numpy as np
import torch

from . import safetensors
from .config import LlamaConfig
from .model import Llama, binary_linears

_INDEX = "model.safetensors.index.json"
_SMALLEST = np.finfo(np.float16).smallest_subnormal
_COMPANIONS = ("tokenizer.model", "tokenizer_config.json",
               "generation_config.json", "special_tokens_map.json")


def _files(model_dir):
    index = os.path.join(model_dir, _INDEX)
    if not os.path.exists(index):
        return [os.path.join(model_dir, "model.safetensors")]
    with open(index, encoding="utf-8") as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    for name in names:
        if os.path.basename(name) != name:
            raise ValueError(f"{index}: shard {name!r} is not a file name")
    return [os.path.join(model_dir, name) for name in names]


def load_model(model_dir, dropout=0.0):
    """A float32 model from `model_dir`; every tensor must be there."""
    model = Llama(LlamaConfig.load(model_dir), dropout)
    missing = dict(model.named_parameters())
    for path in _files(model_dir):
        for name, array in safetensors.load(path):
            if name.endswith(".rotary_emb.inv_freq") or (
                    name == "lm_head.weight"
                    and model.config.tie_word_embeddings):
                continue
            if name not in missing:
                raise ValueError(f"{path}: unexpected or repeated {name}")
            parameter = missing.pop(name)
            if tuple(array.shape) != tuple(parameter.shape):
                raise ValueError(
                    f"{path}: {name} is {list(array.shape)}, but config.json "
                    f"says {list(parameter.shape)}")
            parameter.data.copy_(torch.from_numpy(array.astype(np.float32)))
    if missing:
        raise ValueError(f"{model_dir}: missing {sorted(missing)[0]}")
    return model


def to_float16(values):
    """Rounds, but nothing to zero: a latent weight that ends very near zero
    still has its sign, which is all that counts."""
    with np.errstate(over="ignore"):
        array = values.astype(np.float16)
    lost = (array == 0) & (values != 0)
    array[lost] = np.copysign(_SMALLEST, values[lost])
    return array


def save_state(model_dir, config, state, companions_from=None):
    """Writes config.json and model.safetensors (float16) from {name: tensor};
    copies the tokenizer's files from the directory `companions_from`."""
    os.makedirs(model_dir, exist_ok=True)
    arrays = {}
    for name, tensor in state.items():
        array = to_float16(tensor.detach().cpu().numpy())
        if not np.isfinite(array).all():
            raise ValueError(f"{name} does not fit float16")
        arrays[name] = array
    safetensors.save(os.path.join(model_dir, "model.safetensors"), arrays,
                     {"format": "pt"})
    write_json(os.path.join(model_dir, "config.json"), config.to_json())
    copy_companions(companions_from, model_dir)


def save_model(model_dir, model, companions_from=None):
    save_state(model_dir, model.config, dict(model.named_parameters()),
               companions_from)


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def copy_companions(source, target):
    """Copies tokenizer and generation defaults, where `source` has them."""
    for name in _COMPANIONS if source else ():
        path = os.path.join(source, name)
        if os.path.exists(path) and os.path.abspath(path) != os.path.abspath(
                os.path.join(target, name)):
            shutil.copyfile(path, os.path.join(target, name))


def make_student(teacher, num_expert, seed):
    """The BinaryMoS model that starts from a float one."""
    if teacher.config.num_expert:
        raise ValueError("the teacher must be a plain float model")
    config = LlamaConfig(**{**vars(teacher.config), "num_expert": num_expert})
    torch.manual_seed(seed)  # the routers' random start
    student = Llama(config)
    floats = dict(teacher.named_parameters())
    for name, layer in binary_linears(student):
        layer.init_from(floats[name + ".weight"], floats.get(name + ".bias"))
    binary = {name for name, _ in binary_linears(student)}
    for name, parameter in student.named_parameters():
        owner = name.rpartition(".")[0]
        if owner not in binary and owner.rpartition(".")[0] not in binary:
            parameter.data.copy_(floats[name].data)
    return student
