# shellcheck shell=bash
# Sourced by the other scripts: the root of the checkout, the number of jobs, a
# compiler cache where there is one, and the clock.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# A C++ compiler takes up to 1 GiB, so memory limits the jobs too.
num_jobs() {
  local cores memory
  cores="$(nproc)"
  memory="$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo)"
  ((memory < 1)) && memory=1
  echo $((cores < memory ? cores : memory))
}
# shellcheck disable=SC2034  # used by who sources this
build_jobs="$(num_jobs)"

configure_flags=()
if command -v ccache >/dev/null; then
  configure_flags+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi

# configure_preset NAME: configures build/NAME; its output only if it fails.
configure_preset() {
  local log
  log="$(mktemp)"
  if ! (cd "$root" && cmake --preset "$1" "${configure_flags[@]}" \
    >"$log" 2>&1); then
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

# timed LABEL COMMAND...: runs it and says how long it took.
timed() {
  local label="$1" start=$SECONDS status=0
  shift
  "$@" || status=$?
  printf '== %s: %d s\n' "$label" $((SECONDS - start))
  return "$status"
}
