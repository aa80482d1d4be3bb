#!/usr/bin/env python3
"""Runs the tests of train/: training_test.py TRAIN_DIR

Skipped (77) where PyTorch, or another package of theirs, is not installed. One
that is installed and cannot be imported is a failure.
"""

import importlib.util
import os
import sys
import unittest

NEEDED = ("torch", "numpy", "sentencepiece")
SKIPPED = 77


def main():
    room = os.path.abspath(sys.argv[1])
    missing = [name for name in NEEDED
               if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {sys.executable} has no {', '.join(missing)}; "
              "scripts/install_deps.sh installs them")
        return SKIPPED
    # For this process and those that tests start: models this small only lose
    # by threads that wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(room)
    sys.path.insert(0, room)
    suite = unittest.TestLoader().discover("tests", top_level_dir=".")
    result = unittest.TextTestRunner(verbosity=1).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
