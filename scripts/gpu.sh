#!/usr/bin/env bash
# Everything that needs a GPU, in about ten minutes, with one report:
# the tests of the device, the passes of compute-sanitizer, the benchmarks.
#
#   scripts/gpu.sh                  builds preset cuda here, then runs
#   scripts/gpu.sh pack DIR [BUILD] collects programs and their libraries in DIR
#   DIR/gpu.sh run                  runs them on a machine with a GPU and nothing
#                                   else: no build, no network, no installs
#
# The report is OUT/report.txt (OUT: the directory gpu-report, or $OUT). Steps
# that fail do not stop the others; the exit status says whether any did.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
programs=(bin/binarymos tests/engine/backend/backend_test tests/engine/cuda/cuda_test)

# Libraries of the C runtime stay: those of the other machine match its kernel.
system_libraries='/(ld-linux[^/]*|libc|libm|libpthread|libdl|librt|libresolv)\.so'

pack() {
  local to="$1" build="$2" program
  mkdir -p "$to/lib"
  cp "${BASH_SOURCE[0]}" "$to/gpu.sh"
  for program in "${programs[@]}"; do
    cp "$build/$program" "$to/"
    ldd "$build/$program" | awk '$3 ~ "^/" {print $3}' |
      grep -Ev "$system_libraries" | xargs -r cp -L -t "$to/lib"
  done
  du -sh "$to"
}

failed=()

# step NAME SECONDS COMMAND...: runs it under a time limit, reports how it ended.
step() {
  local name="$1" limit="$2" start=$SECONDS status=0
  shift 2
  printf '\n== %s\n' "$name"
  timeout --kill-after=10 "$limit" "$@" 2>&1 || status=$?
  printf '== %s: status %d after %d s (limit %d s)\n' "$name" "$status" \
    $((SECONDS - start)) "$limit"
  ((status == 0)) || failed+=("$name")
}

# A filter that matches nothing, or tests that skip, are not a pass.
device_tests() {
  local log
  log="$(mktemp)"
  "$bin/backend_test" --gtest_filter='*/cuda' | tee "$log"
  ! grep -q 'SKIPPED' "$log" && grep -q 'PASSED' "$log"
}

run_steps() {
  step "device" 30 nvidia-smi
  # timeout runs programs, not functions.
  step "tests on the device" 120 env BIN="$bin" bash "${BASH_SOURCE[0]}" \
    device-tests
  if command -v compute-sanitizer >/dev/null; then
    local tool
    for tool in memcheck racecheck synccheck; do
      step "compute-sanitizer $tool" 150 compute-sanitizer --tool "$tool" \
        --error-exitcode 1 "$bin/backend_test" --gtest_filter='*/cuda'
    done
  else
    printf '\n== compute-sanitizer: not on this machine\n'
    failed+=("compute-sanitizer")
  fi
  step "bench linear" 120 "$bin/binarymos" bench linear --device cuda \
    --tokens 1 8 64 --kinds binarymos --repeats 3
  step "bench linear, other kinds" 90 "$bin/binarymos" bench linear \
    --device cuda --tokens 1 8 --kinds onebit float16 --repeats 3
  step "bench engine, 7b" 150 "$bin/binarymos" bench engine --device cuda \
    --shape 7b --streams 1 8 64 --repeats 1
  printf '\n== %d steps failed\n' "${#failed[@]}"
  ((${#failed[@]} == 0)) || printf '== failed: %s\n' "${failed[@]}"
  ((${#failed[@]} == 0))
}

main() {
  case "${1:-}" in
    pack)
      pack "${2:?pack DIR [BUILD]}" "${3:-$here/../build/auto}"
      return
      ;;
    run)
      bin="$here"
      export LD_LIBRARY_PATH="$here/lib:${LD_LIBRARY_PATH:-}"
      ;;
    "")
      (cd "$here/.." && cmake --preset cuda &&
        cmake --build build/cuda --target binarymos backend_test cuda_test)
      bin="$(mktemp -d)"
      pack "$bin" "$here/../build/cuda"
      ;;
    device-tests)
      bin="${BIN:?}"
      device_tests
      return
      ;;
    *)
      sed -n '2,12p' "${BASH_SOURCE[0]}" >&2
      return 2
      ;;
  esac
  local out="${OUT:-gpu-report}" status=0
  mkdir -p "$out"
  run_steps | tee "$out/report.txt" || status=1
  printf '== %s/report.txt\n' "$out"
  return "$status"
}

main "$@"
