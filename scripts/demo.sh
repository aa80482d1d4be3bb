#!/usr/bin/env bash
# Builds the server, serves a model, streams a completion through gRPC, shows
# metrics, drains, and ends with 0. Installs what is missing.
set -euo pipefail

# shellcheck source=scripts/build_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/build_env.sh"
prompt="${1:-Once upon a time, a little fox}"
binary="$root/build/auto/bin/binarymos"

work="$(mktemp -d)"
server=""
clean_up() {
  local status=$?
  trap - EXIT
  if [[ -n "$server" ]] && kill -0 "$server" 2>/dev/null; then
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  if ((status != 0)) && [[ -s "$work/server.log" ]]; then
    echo "The server's log:" >&2
    tail -n 20 "$work/server.log" >&2
  fi
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[[ -t 1 ]] || step() { printf '\n%s\n' "$*"; }

build() {
  configure_preset auto &&
    cmake --build "$root/build/auto" --target binarymos --parallel "$build_jobs"
}

step "Building binarymos"
"$root/scripts/install_deps.sh"
timed "build" build
"$binary" version

if [[ -f "$root/models/tales/config.json" ]]; then
  model="$root/models/tales"
  step "Serving models/tales"
else
  model="$work/random"
  step "There is no models/tales, so the model is a tiny one with random weights: its text is noise"
  "$binary" synthesize "$model" --shape tiny --seed 1
fi

# Any free ports; the server says which, once it serves.
"$binary" serve "$model" --grpc-port 0 --http-port 0 \
  --port-file "$work/ports" --log-format text 2>"$work/server.log" &
server=$!
for ((i = 0; i < 1200; ++i)); do
  [[ -f "$work/ports" ]] && break
  if ! kill -0 "$server" 2>/dev/null; then
    echo "The server ended before it served." >&2
    exit 1
  fi
  sleep 0.1
done
grpc_port="$(sed -n 's/^grpc=//p' "$work/ports")"
http_port="$(sed -n 's/^http=//p' "$work/ports")"
address="127.0.0.1:$grpc_port"
"$binary" health --server "$address" --service readiness --wait 30s >/dev/null
echo "Serving on $address, metrics on http://127.0.0.1:$http_port/metrics"

step "binarymos generate --stream --prompt '$prompt'"
"$binary" generate --server "$address" --stream --prompt "$prompt" \
  --echo --max-tokens 96 --temperature 0.7 --top-k 40 --seed 1

step "A few of the server's metrics"
curl --silent --show-error --fail "http://127.0.0.1:$http_port/metrics" |
  grep -E '^binarymos_(num_requests_(running|waiting)|kv_cache_usage_perc|prompt_tokens_total|generation_tokens_total|time_to_first_token_seconds_(sum|count)|inter_token_latency_seconds_(sum|count)|request_success_total|model_bits_per_weight|model_weight_bytes|kv_cache_bytes)' |
  sed -E 's/,?(engine|model_name)="[^"]*"//g; s/\{,?\}//; s/\{,/{/'

step "SIGTERM: the server drains and ends"
kill -TERM "$server"
status=0
wait "$server" || status=$?
server=""
if ((status != 0)); then
  echo "The server ended with $status." >&2
  exit 1
fi
printf 'It ended with 0. The demonstration took %d s.\n' "$SECONDS"
