#!/usr/bin/env bash
# Installs what is missing, builds everything, runs every test. Another preset of
# CMakePresets.json: scripts/test.sh asan
# Some of the test programs only: scripts/test.sh tsan core_test scheduler_test
set -euo pipefail

# shellcheck source=scripts/build_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/build_env.sh"
preset="${1:-auto}"
programs=("${@:2}")

# What the sanitizers overlook and why is in these files. Memory that an
# uninstrumented library touches is not ours to judge; its locks are seen.
suppressions="$root/tests/sanitizers"
export TSAN_OPTIONS="suppressions=$suppressions/tsan.txt:ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1:${TSAN_OPTIONS:-}"
export LSAN_OPTIONS="suppressions=$suppressions/lsan.txt:print_suppressions=0:${LSAN_OPTIONS:-}"
export ASAN_OPTIONS="detect_stack_use_after_return=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"

build() {
  cmake --build "$root/build/$preset" --parallel "$build_jobs" \
    ${programs[@]:+--target "${programs[@]}"}
}

run_tests() {
  local program
  for program in "${programs[@]}"; do
    "$(find "$root/build/$preset/tests" -name "$program" -type f -perm -u+x)" \
      --gtest_brief=1 || return
  done
  ((${#programs[@]} > 0)) || ctest --test-dir "$root/build/$preset" --output-on-failure \
    --parallel "$build_jobs" --progress
}

timed "dependencies" "$root/scripts/install_deps.sh"
timed "configure $preset" configure_preset "$preset"
timed "build $preset" build
timed "tests $preset" run_tests
printf '== scripts/test.sh %s: passed in %d s\n' "$preset" "$SECONDS"
