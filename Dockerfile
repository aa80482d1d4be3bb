# docker build --target cpu -t binarymos .          (the default)
# docker build --target cuda -t binarymos:cuda .
#
# With --build-arg GIT_COMMIT=$(git rev-parse --short=12 HEAD) the program tells
# its commit (`binarymos version`, the first line of its log).
#
# The image serves the model that is mounted at /model, on all addresses of the
# container: gRPC on 9000, metrics on 8080. It runs as user 65532, needs no
# capability and no writable file.
ARG DEBIAN_IMAGE=debian:bookworm-slim
ARG CUDA_VERSION=12.8.1
ARG CUDA_DIR=/usr/local/cuda-12.8

# --- CPU ---------------------------------------------------------------------
FROM ${DEBIAN_IMAGE} AS build-cpu
WORKDIR /src
COPY scripts/install_deps.sh scripts/
RUN scripts/install_deps.sh --build
COPY . .
ARG GIT_COMMIT
RUN cmake --preset cpu -DBINARYMOS_BUILD_TESTS=OFF \
        -DBINARYMOS_GIT_COMMIT="${GIT_COMMIT}" \
    && cmake --build build/cpu --target binarymos \
    && strip build/cpu/bin/binarymos

FROM ${DEBIAN_IMAGE} AS runtime-cpu
COPY scripts/install_deps.sh /tmp/
RUN /tmp/install_deps.sh --runtime \
    && rm -rf /tmp/install_deps.sh /var/lib/apt/lists/*

# --- CUDA --------------------------------------------------------------------
# NVIDIA's images exist for Ubuntu, whose libraries have other versions than
# Debian's. So the toolkit is copied onto Debian, and both stages stay Debian.
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu22.04 AS cuda-devel
FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu22.04 AS cuda-runtime

FROM build-cpu AS build-cuda
ARG CUDA_DIR
ARG GIT_COMMIT
COPY --from=cuda-devel ${CUDA_DIR} /usr/local/cuda
ENV PATH=/usr/local/cuda/bin:${PATH}
RUN cmake --preset release -DBINARYMOS_BUILD_TESTS=OFF \
        -DBINARYMOS_GIT_COMMIT="${GIT_COMMIT}" \
    && cmake --build build/release --target binarymos \
    && strip build/release/bin/binarymos

FROM runtime-cpu AS cuda
ARG CUDA_DIR
COPY --from=cuda-runtime ${CUDA_DIR} /usr/local/cuda
COPY --from=build-cuda /src/build/release/bin/binarymos /usr/local/bin/
COPY LICENSE /usr/share/doc/binarymos/
# What the NVIDIA container runtime mounts from the host.
ENV LD_LIBRARY_PATH=/usr/local/cuda/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 9000 8080
ENTRYPOINT ["/usr/local/bin/binarymos"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--device", "cuda"]

# --- The default: last -------------------------------------------------------
FROM runtime-cpu AS cpu
COPY --from=build-cpu /src/build/cpu/bin/binarymos /usr/local/bin/
COPY LICENSE /usr/share/doc/binarymos/
USER 65532:65532
EXPOSE 9000 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m \
  CMD ["/usr/local/bin/binarymos", "health", "--service", "readiness", "--quiet"]
ENTRYPOINT ["/usr/local/bin/binarymos"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--device", "cpu"]
