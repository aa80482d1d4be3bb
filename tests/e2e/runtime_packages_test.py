"""Every library that the program loads comes with what
`scripts/install_deps.sh --runtime` installs, which is all that the container
image has.

Run by ctest:  runtime_packages_test.py --binary B --script install_deps.sh
Exits with 77 (skipped) where dpkg or readelf is missing.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys

# In every Debian.
ESSENTIAL = {"libc6", "libgcc-s1", "libstdc++6"}


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True,
                          text=True).stdout


def needed_libraries(binary):
    return re.findall(r"\(NEEDED\).*\[(.*)\]",
                      output_of("readelf", "--dynamic", binary))


def packages_of(library):
    """Names of the installed packages that have this file, without :amd64."""
    lines = output_of("dpkg", "--search", f"*/{library}").splitlines()
    return {line.split(":")[0] for line in lines}


def runtime_packages(script):
    text = pathlib.Path(script).read_text(encoding="utf-8")
    return set(re.search(r"runtime_packages=\((.*?)\)", text,
                         re.S).group(1).split())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--script", required=True)
    options = parser.parse_args()
    for tool in ("dpkg", "readelf"):
        if shutil.which(tool) is None:
            print(f"skipped: no {tool}")
            return 77
    libraries = needed_libraries(options.binary)
    installed = runtime_packages(options.script) | ESSENTIAL
    missing = {library: packages for library in libraries
               if not (packages := packages_of(library)) & installed}
    for library, packages in missing.items():
        print(f"{library} is in {packages}, which --runtime does not install")
    print(f"{len(libraries)} libraries, {len(missing)} missing")
    return 1 if missing or len(libraries) < 5 else 0


if __name__ == "__main__":
    sys.exit(main())
