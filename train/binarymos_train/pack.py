"""Packs a model in the published layout into the directory that the server
reads: one bit per latent weight, scales in float16."""

import argparse
import json
import os

import numpy as np

from . import checkpoint, manifest, safetensors
from .config import LlamaConfig
from .model import Llama, binary_linears

_SUFFIXES = {"weight": "sign", "gate_linear.weight": "gate",
             "in_channel_scale": "in_scale", "out_channel_scale": "out_scale",
             "bias": "bias"}


def pack_signs(weight):
    """[out, in] to (U8 [out, in / 8], number of exact zeros). Bit i of byte j
    is weight 8j + i; 1 means +1, and a zero, which has no sign, becomes +1."""
    if weight.shape[1] % 8:
        raise ValueError(f"{weight.shape[1]} inputs are not a multiple of 8")
    signs = np.packbits(weight >= 0, axis=1, bitorder="little")
    return signs, int(np.count_nonzero(weight == 0))


def unpack_signs(signs):
    """The inverse: float32 [out, in] of -1 and +1."""
    bits = np.unpackbits(signs, axis=1, bitorder="little")
    return bits.astype(np.float32) * 2 - 1


def pack_tensors(model):
    """({name: array} of the packed file, {name: zeros} where there are any).
    A model with one expert needs no router."""
    tensors, zeros = {}, {}
    owners = {name for name, _ in binary_linears(model)}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        array = values.astype(np.float16)
        owner = next((o for o in (name.rpartition(".")[0],
                                  name.rsplit(".", 2)[0]) if o in owners),
                     None)
        if owner is None:
            tensors[name] = array
            continue
        suffix = _SUFFIXES[name[len(owner) + 1:]]
        if suffix == "gate" and model.config.num_expert == 1:
            continue
        if suffix == "sign":
            # Before rounding, which makes zeros of very small numbers.
            array, count = pack_signs(values)
            if count:
                zeros[owner] = count
        tensors[f"{owner}.{suffix}"] = array
    return tensors, zeros


def packed_config(config):
    values = config.to_json()
    values["quantization_config"] = {
        "quant_method": "binarymos", "num_experts": values.pop("num_expert"),
        "version": 1}
    return values


def pack(source, target):
    """Writes `target`; returns {linear: exact zeros}. Without the weights, which
    come after the rest, a directory that is half written does not load."""
    if not LlamaConfig.load(source).num_expert:
        raise ValueError(f"{source}: not a BinaryMoS model: config.json has no "
                         "num_expert")
    model = checkpoint.load_model(source)
    tensors, zeros = pack_tensors(model)
    path = os.path.join(target, "model.safetensors")
    os.makedirs(target, exist_ok=True)
    if os.path.exists(path):
        os.remove(path)
    checkpoint.write_json(os.path.join(target, "config.json"),
                          packed_config(model.config))
    checkpoint.copy_companions(source, target)
    safetensors.save(path, tensors, {"format": "pt"})
    manifest.write(target)
    return zeros


def unpack(source, target):
    """The published layout of a packed model, to train from it or to measure
    it: latent weights of -1 and +1."""
    with open(os.path.join(source, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    experts = config.pop("quantization_config")["num_experts"]
    config["num_expert"] = experts
    names = {short: long for long, short in _SUFFIXES.items()}
    tensors = {}
    for name, array in safetensors.load(
            os.path.join(source, "model.safetensors")):
        owner, _, suffix = name.rpartition(".")
        if suffix == "sign":
            array = unpack_signs(array).astype(np.float16)
            if experts == 1:  # the published layout has a router that is idle
                tensors[owner + ".gate_linear.weight"] = np.zeros(
                    (1, array.shape[1]), np.float16)
        tensors[f"{owner}.{names.get(suffix, suffix)}"] = array
    os.makedirs(target, exist_ok=True)
    checkpoint.copy_companions(source, target)
    safetensors.save(os.path.join(target, "model.safetensors"), tensors,
                     {"format": "pt"})
    checkpoint.write_json(os.path.join(target, "config.json"), config)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="binarymos_train.pack",
                                     description=__doc__)
    parser.add_argument("source", help="directory in the published layout")
    parser.add_argument("target", help="directory to write")
    parser.add_argument("--unpack", action="store_true",
                        help="the other way round: latent weights are signs")
    args = parser.parse_args(argv)
    if args.unpack:
        unpack(args.source, args.target)
        print(f"wrote {args.target}", flush=True)
        return
    zeros = pack(args.source, args.target)
    for name, count in zeros.items():
        print(f"{name}: {count} exact zeros became +1")
    size = sum(entry.stat().st_size for entry in os.scandir(args.target)
               if entry.is_file())
    print(f"wrote {args.target}: {size} bytes, {sum(zeros.values())} exact "
          "zeros", flush=True)


if __name__ == "__main__":
    main()
