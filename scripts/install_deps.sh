#!/usr/bin/env bash
# Installs the Debian 12 packages that building and testing need, if any is
# missing. Quiet and quick when there is nothing to do. Root, or a user who may
# sudo. `--build` leaves out what only tests and training need, `--runtime`
# installs only what the built program loads.
set -euo pipefail

build_packages=(
  # Tools.
  cmake git g++ make ninja-build pkg-config protobuf-compiler
  protobuf-compiler-grpc
  # Libraries, and what their CMake files ask for in turn.
  libabsl-dev libbenchmark-dev libc-ares-dev libcivetweb-dev libcli11-dev
  libcurl4-openssl-dev libfmt-dev libgrpc++-dev libprotobuf-dev libre2-dev
  libsentencepiece-dev libspdlog-dev libssl-dev libtomlplusplus-dev
  nlohmann-json3-dev prometheus-cpp-dev zlib1g-dev
)
test_packages=(
  libgmock-dev libgtest-dev
  # The end-to-end test, and the scripts.
  ca-certificates curl procps python3 python3-grpcio python3-protobuf
  # Training and its tests. Without the second, PyTorch is 20 times slower.
  python3-torch libopenblas0-pthread python3-sentencepiece
)
runtime_packages=(
  libabsl20220623 libbenchmark1debian libc-ares2 libfmt9 libgrpc++1.51
  libgrpc29 libprometheus-cpp-core1.0 libprometheus-cpp-pull1.0 libre2-9
  libsentencepiece0 libspdlog1.10 libssl3 libtomlplusplus3 zlib1g
)

case "$*" in
  "") packages=("${build_packages[@]}" "${test_packages[@]}") ;;
  --build) packages=("${build_packages[@]}") ;;
  --runtime) packages=("${runtime_packages[@]}") ;;
  *)
    echo "usage: $0 [--build | --runtime]" >&2
    exit 2
    ;;
esac

is_installed() {
  [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" \
    2>/dev/null)" == installed ]]
}

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
((${#missing[@]} == 0)) && exit 0

if ! command -v apt-get >/dev/null; then
  echo "$0: needs Debian's apt-get; install by hand: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "$0: not root, and no sudo; run as root:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "Installing ${#missing[@]} packages: ${missing[*]}"
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq \
    -o Dpkg::Use-Pty=0 "$@" >/dev/null
}
# The lists of a fresh machine are empty or old.
apt update
apt install --yes --no-install-recommends "${missing[@]}"
