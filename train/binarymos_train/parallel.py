"""One process, or several that torchrun started."""

import os

import torch
from torch import distributed as dist

_BUCKET = 25 << 20  # bytes of gradients that travel together


class Processes:
    """Every process holds the whole model and computes its share of a step."""

    rank, count = 0, 1

    def place(self, model):
        """The model as the processes hold it."""
        return model

    def average_gradients(self, parameters):
        pass

    def average(self, value):
        return value

    def full_state(self, model, optimizer):
        """State dictionaries to write, complete on rank 0."""
        return model.state_dict(), optimizer and optimizer.state_dict()

    def load_full_state(self, model, optimizer, model_state, optimizer_state):
        model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)

    def load_full_model(self, model, model_state):
        model.load_state_dict(model_state)


class DataParallel(Processes):
    """Gradients are summed over the processes in one fixed order, so two
    processes compute what one computes with the same micro-batches."""

    def __init__(self, backend):
        dist.init_process_group(backend)
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def _reduce(self, bucket):
        flat = torch.cat([p.grad.reshape(-1) for p in bucket])
        dist.all_reduce(flat)
        flat /= self.count
        parts = flat.split([p.numel() for p in bucket])
        for parameter, part in zip(bucket, parts):
            parameter.grad.copy_(part.view_as(parameter))

    def average_gradients(self, parameters):
        bucket, size = [], 0
        for parameter in parameters:
            bucket.append(parameter)
            size += parameter.numel() * 4
            if size >= _BUCKET:
                self._reduce(bucket)
                bucket, size = [], 0
        if bucket:
            self._reduce(bucket)

    def average(self, value):
        value = value.clone()
        dist.all_reduce(value)
        return value / self.count


def from_environment(device):
    """DataParallel under torchrun, else a process that is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    return DataParallel("nccl" if device.type == "cuda" else "gloo")


def pick_device(name):
    """'auto', 'cpu' or 'cuda'; under torchrun each process has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)
