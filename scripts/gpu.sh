#!/usr/bin/env bash
# Everything that needs a GPU, in a few minutes, with one report: the tests of
# the device, the passes of compute-sanitizer, the benchmarks.
#
#   scripts/gpu.sh                  builds preset cuda here, then runs
#   scripts/gpu.sh pack DIR [BUILD] collects programs and their libraries in DIR
#   DIR/gpu.sh run [STEP...]        runs them (all, or those steps) on a machine
#                                   with a GPU and nothing else: no build, no
#                                   network, no installs
#
# Steps: device backend model golden sampling memcheck racecheck
# memcheck-sampling racecheck-sampling linear linear-wgmma stages attention
# attention-e4m3 decode prefill prefill-fast linear-float16 engine. The report
# is OUT/report.txt (OUT: the directory gpu-report, or $OUT). Steps that fail do
# not stop the others; the exit status says whether any did.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
programs=(bin/binarymos tests/engine/backend/backend_test
  tests/engine/engine_test tests/golden/golden_test
  tests/engine/cuda/cuda_test bench/cuda_stages)

# Libraries of the C runtime stay: those of the other machine match its kernel.
system_libraries='/(ld-linux[^/]*|libc|libm|libpthread|libdl|librt|libresolv)\.so'

pack() {
  local to="$1" build="$2" program
  mkdir -p "$to/lib"
  cp "${BASH_SOURCE[0]}" "$to/gpu.sh"
  cp -r "$here/../tests/golden/cases" "$to/golden-cases"
  for program in "${programs[@]}"; do
    cp "$build/$program" "$to/"
    strip "$to/$(basename "$program")"
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
  if ((${#steps[@]} > 0)) && [[ " ${steps[*]} " != *" $name "* ]]; then
    return
  fi
  printf '\n== %s\n' "$name"
  timeout --kill-after=10 "$limit" "$@" 2>&1 || status=$?
  printf '== %s: status %d after %d s (limit %d s)\n' "$name" "$status" \
    $((SECONDS - start)) "$limit"
  ((status == 0)) || failed+=("$name")
}

# device_tests PROGRAM FILTER [OPTIONAL]: a filter that matches nothing, or tests
# that skip, are not a pass; but those of FILTER that match OPTIONAL, which need
# more than a device, may skip, and the report says so.
device_tests() {
  local program="$1" filter="$2" optional="${3:-}" log status=0
  log="$(mktemp)"
  run_tests "$program" "$filter${optional:+-$optional}" "$log" || status=1
  if grep -q 'SKIPPED' "$log"; then status=1; fi
  if [[ -n "$optional" ]]; then
    run_tests "$program" "$optional" "$log" || status=1
    if grep -q 'SKIPPED' "$log"; then
      printf '== skipped, which is no failure: %s\n' "$optional"
    fi
  fi
  return "$status"
}

run_tests() {
  local program="$1" filter="$2" log="$3"
  "$program" --gtest_filter="$filter" --gtest_brief=1 | tee "$log" || return
  ! grep -q ' 0 tests from' "$log" && grep -q 'PASSED' "$log"
}

sanitizer() {
  local tool="$1" program="$2" filter="$3"
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not on this machine"
    return 1
  fi
  compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 20 \
    "$program" --gtest_filter="$filter" --gtest_brief=1
}

describe_device() {
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm \
    --format=csv
}

run_steps() {
  # timeout runs programs, not functions: this script calls itself.
  local self=(env BIN="$bin" bash "${BASH_SOURCE[0]}")
  local bench=("$bin/binarymos" bench)
  # A small model, every kind of kernel: sanitizers are slow.
  local few='Kernels/BackendTest.ASequenceDoesNotSee*/cuda:Kernels/CudaBackendTest.With*/cuda'
  step device 30 "${self[@]}" describe-device
  step backend 150 "${self[@]}" device-tests "$bin/backend_test" '*/cuda' \
    '*OfCublas/cuda'
  step model 90 "${self[@]}" device-tests "$bin/engine_test" '*DeviceTest*'
  step golden 90 "${self[@]}" device-tests "$bin/golden_test" '*TheCudaDevice*'
  step sampling 60 "${self[@]}" device-tests "$bin/cuda_test" '*OnDevice*'
  step memcheck 90 "${self[@]}" sanitizer memcheck "$bin/backend_test" "$few"
  step racecheck 90 "${self[@]}" sanitizer racecheck "$bin/backend_test" "$few"
  local fewer='CudaStepOnDevice*:*TiesGoToTheSmallerId/OnDevice'
  step memcheck-sampling 60 "${self[@]}" sanitizer memcheck "$bin/cuda_test" \
    "$fewer"
  step racecheck-sampling 60 "${self[@]}" sanitizer racecheck "$bin/cuda_test" \
    "$fewer"
  step linear 90 "${bench[@]}" linear --device cuda --tokens 1 8 64 \
    --kinds binarymos onebit
  step linear-wgmma 60 "${bench[@]}" linear --device cuda --tokens 8 64 \
    --cuda-wgmma
  step stages 30 "$bin/cuda_stages"
  step attention 60 "${bench[@]}" attention --device cuda --seconds 0.5
  step attention-e4m3 60 "${bench[@]}" attention --device cuda --seconds 0.5 \
    --kv-cache-dtype fp8_e4m3
  step decode 60 "${bench[@]}" decode --device cuda --seconds 1
  step prefill 60 "${bench[@]}" prefill --device cuda --seconds 1
  step prefill-fast 60 "${bench[@]}" prefill --device cuda --seconds 1 \
    --fast-linear
  step linear-float16 60 "${bench[@]}" linear --device cuda --tokens 1 8 \
    --kinds float16
  step engine 120 "${bench[@]}" engine --device cuda --shape 7b \
    --streams 1 64 --repeats 1
  printf '\n== %d steps failed\n' "${#failed[@]}"
  ((${#failed[@]} == 0)) || printf '== failed: %s\n' "${failed[@]}"
  ((${#failed[@]} == 0))
}

main() {
  local command="${1:-}"
  (($# == 0)) || shift
  steps=()
  case "$command" in
    pack)
      pack "${1:?pack DIR [BUILD]}" "${2:-$here/../build/auto}"
      return
      ;;
    run)
      bin="$here"
      steps=("$@")
      ;;
    "")
      (cd "$here/.." && cmake --preset cuda &&
        cmake --build build/cuda \
          --target binarymos backend_test engine_test golden_test cuda_test \
            cuda_stages)
      bin="$(mktemp -d)"
      pack "$bin" "$here/../build/cuda"
      ;;
    device-tests | sanitizer | describe-device)
      bin="${BIN:?}"
      "${command//-/_}" "$@"
      return
      ;;
    *)
      sed -n '2,15p' "${BASH_SOURCE[0]}" >&2
      return 2
      ;;
  esac
  # These come with the machine: cuBLAS, for the baseline, compute-sanitizer.
  export PATH="$PATH:/usr/local/cuda/bin"
  export LD_LIBRARY_PATH="$bin/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64"
  export BINARYMOS_GOLDEN_CASES="$bin/golden-cases"
  local out="${OUT:-gpu-report}" status=0
  mkdir -p "$out"
  run_steps | tee "$out/report.txt" || status=1
  printf '== %s/report.txt\n' "$out"
  return "$status"
}

main "$@"
