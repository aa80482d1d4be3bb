#!/usr/bin/env bash
# Runs clang-tidy over the program and its benchmarks, CUDA aside, with the
# checks of .clang-tidy: scripts/tidy.sh [REGEX of paths]
set -euo pipefail

# shellcheck source=scripts/build_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/build_env.sh"
paths="${1:-(bench|cli|engine|scheduler|server)/.*\.cc$}"

for tool in clang++ run-clang-tidy; do
  command -v "$tool" >/dev/null || {
    echo "$0: needs $tool: apt-get install clang clang-tidy" >&2
    exit 1
  }
done
configure_flags+=(-DCMAKE_EXPORT_COMPILE_COMMANDS=ON)
timed "configure clang" configure_preset clang
timed "generated headers" cmake --build "$root/build/clang" \
  --parallel "$build_jobs" --target binarymos_proto
timed "clang-tidy" run-clang-tidy -quiet -j "$build_jobs" -p "$root/build/clang" \
  "^$root/$paths"
