# CoCu in a container, for people and for the workers of an engine.
#
#   docker build -t cocu .
#   docker run --rm --user "$(id -u)" -v "$PWD:/work" -v "$HOME/.cache:/home/cocu/.cache" cocu curate my-data.yaml
#
# With GPUs (torch for CUDA brings CUDA along; the base makes the driver visible):
#
#   docker build -t cocu:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD:/work" cocu:cuda curate my-data.yaml
#
# For Dataflow and other engines that start containers of Beam's (--sdk_container_image, or --environment_type=DOCKER):
#
#   docker build -t cocu-worker --target worker .
#
# BEAM must be of the version that starts the pipeline.
ARG BASE=python:3.12-slim-bookworm
ARG BEAM=apache/beam_python3.12_sdk:2.77.0

FROM ${BEAM} AS beam

# --- build: an environment with the package and its dependencies --------------------------------------------------------
FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=train,dask,demo,browse

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Versions of Debian's and Ubuntu's packages differ by base.
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null || ! python3 -c 'import ensurepip' 2>/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi && python3 -m venv /opt/cocu
ENV PATH=/opt/cocu/bin:$PATH

# Versions are those of setup.cfg: ranges.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch>=2.4' torchvision
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE NOTICE ./
COPY cocu cocu
COPY curation curation
COPY evaluation evaluation
COPY pipelines pipelines
COPY segmenters segmenters
COPY training training
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]"

# --- what both images share ---------------------------------------------------------------------------------------------
FROM ${BASE} AS runtime
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libgomp1 \
    && if ! command -v python3 >/dev/null; then apt-get install -y --no-install-recommends python3; fi \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/cocu /opt/cocu
ENV PATH=/opt/cocu/bin:$PATH

# --- worker: Beam's own program starts the workers -----------------------------------------------------------------------
FROM runtime AS worker
COPY --from=beam /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

# --- user: the command; what is here is at /work -------------------------------------------------------------------------
FROM runtime AS user
RUN useradd --create-home --uid 10001 cocu && mkdir /work && chown cocu /work
USER 10001
ENV HOME=/home/cocu
WORKDIR /work
VOLUME /work
ENTRYPOINT ["cocu"]
CMD ["--help"]
