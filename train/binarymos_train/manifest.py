"""manifest.json: length and SHA-256 of each file of a model directory, which
`binarymos serve --verify` checks."""

import hashlib
import os

from . import checkpoint

NAME = "manifest.json"


def _facts(path):
    with open(path, "rb") as file:
        data = file.read()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write(folder):
    """Of the files that are in `folder` now, but for hidden ones."""
    names = sorted(entry.name for entry in os.scandir(folder)
                   if entry.is_file() and entry.name != NAME
                   and not entry.name.startswith("."))
    checkpoint.write_json(
        os.path.join(folder, NAME),
        {"version": 1,
         "files": {name: _facts(os.path.join(folder, name))
                   for name in names}})
