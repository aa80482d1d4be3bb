"""Models too large for one device: parameters, gradients and optimizer state
are sharded over the processes (PyTorch's fully_shard).

Untested on GPUs. Every process still reads both models into its own memory
first, in float32.
"""

import torch

# Before the imports below: PyTorch 1.13's own fail on Python 3.11.
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
    raise SystemExit("--fsdp needs PyTorch 2.6 or later, this is "
                     + torch.__version__)

from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions, get_model_state_dict, get_optimizer_state_dict,
    set_model_state_dict, set_optimizer_state_dict)
from torch.distributed.fsdp import fully_shard  # noqa: E402

from .parallel import DataParallel  # noqa: E402

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ShardedProcesses(DataParallel):
    """As DataParallel for the trainer, but no process holds a whole model."""

    def __init__(self, device):
        super().__init__("nccl" if device.type == "cuda" else "gloo")

    def place(self, model):
        for layer in model.model.layers:
            fully_shard(layer)
        return fully_shard(model)

    def average_gradients(self, parameters):
        pass  # fully_shard averages in the backward pass

    def full_state(self, model, optimizer):
        return (get_model_state_dict(model, options=_FULL),
                optimizer and get_optimizer_state_dict(model, optimizer,
                                                       options=_FULL))

    def load_full_state(self, model, optimizer, model_state, optimizer_state):
        self.load_full_model(model, model_state)
        set_optimizer_state_dict(model, optimizer, optimizer_state,
                                 options=_FULL)

    def load_full_model(self, model, model_state):
        set_model_state_dict(model, model_state, options=_FULL)
