"""Reads and writes the safetensors format, numpy arrays only.

A file is: the length of the header (8 bytes, little-endian), the header (JSON:
name to dtype, shape and [begin, end) in the data), the data.
"""

import json
import os

import numpy as np

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16,
           "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
           "U8": np.uint8, "BOOL": np.bool_}
_NAMES = {np.dtype(value): key for key, value in _DTYPES.items()
          if key != "BF16"}
_MAX_HEADER = 100 << 20


def save(path, tensors, metadata=None):
    """Writes {name: array}. An existing file is replaced as a whole."""
    header, end = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype],
                        "shape": list(array.shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8
    with open(path + ".tmp", "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    os.replace(path + ".tmp", path)


def load(path):
    """Yields (name, array); BF16 is widened to float32. Arrays are read-only
    views of the mapped file, the widened ones excepted."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if data.size < 8 or length > min(_MAX_HEADER, data.size - 8):
        raise ValueError(f"{path}: not a safetensors file")
    header = json.loads(data[8:8 + length].tobytes())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name}: dtype {entry['dtype']!r}")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        size = int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize
        if not 0 <= begin <= end <= data.size - 8 - length or \
                end - begin != size:
            raise ValueError(f"{path}: {name}: offsets and shape disagree")
        raw = data[8 + length + begin:8 + length + end]
        array = np.frombuffer(raw, dtype).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        yield name, array
