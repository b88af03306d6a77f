# The organisers build this without arguments. BASE_IMAGE selects another registry or a local image.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# The project's files, made readable for all users. Changes in this stage do not enlarge the image.
FROM ${BASE_IMAGE} AS files
COPY . /satmap
RUN chmod -R a+rX /satmap \
    && mkdir -p /satmap/weights /encoders/imagenet \
    # Trainings by any user may write weights into the container, which is useful without --rm.
    && chmod 0777 /satmap/weights \
    # Move encoder weights out of /satmap/weights, where a volume would hide them.
    && find /satmap/weights -path '*/imagenet/*' -exec mv -t /encoders/imagenet {} + \
    && rm -rf /satmap/weights/imagenet

FROM ${BASE_IMAGE}

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="satmap" \
      org.opencontainers.image.description="Satellite images into road graphs with travel times" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"

# Any user of the container has a writable home and a name, which torch's caches need.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH \
    HOME=/home/satmap \
    LOGNAME=satmap

# Libraries that the wheels of rasterio and lightgbm need and slim images lack. Any version works,
# and versions differ between base images, so none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home satmap \
    && chmod 1777 /home/satmap

WORKDIR /satmap

# Dependencies first, so that this layer is rebuilt only when the lock changes. All are wheels,
# except one pure Python package, so no compiler is needed. requirements-cuda12.lock is for GPUs
# older than Turing and drivers older than CUDA 13.
ARG LOCK=requirements.lock
COPY ${LOCK} ./
RUN python3 -m venv /opt/venv \
    && pip install --require-hashes --only-binary :all: --no-binary pretrainedmodels \
        --requirement "${LOCK}"

COPY --from=files /satmap /satmap
COPY --from=files /encoders /opt/satmap-encoders
# Manifests record the checksum of requirements.lock, so the installed lock gets this name.
RUN if [ "${LOCK}" != requirements.lock ]; then mv "${LOCK}" requirements.lock; fi \
    && pip install --no-deps --no-build-isolation --editable . \
    && python -m compileall -q code

# Check the environment and the installed ImageNet weights, as the user of a container.
RUN ["container/entrypoint.sh", "sh", "-euc", "pip check && satmap --version && python -c 'import cv2, rasterio, timm, torch, torchvision; import satmap.training.train_ensemble; from satmap.weights.pretrained import installed_file; assert installed_file(\"efficientnet_lite0\")' && test \"$(id -u)\" != 0"]

# `--build-arg FETCH_WEIGHTS="sn5-roads"` downloads the ImageNet weights of these recipes into the
# image. Trainings use them if weights/imagenet does not have them.
ARG FETCH_WEIGHTS=""
ENV SATMAP_ENCODERS=/opt/satmap-encoders \
    SATMAP_SCRATCH=/wdata
RUN for recipe in ${FETCH_WEIGHTS}; do \
        satmap weights fetch --recipe "$recipe" --weights "$SATMAP_ENCODERS" || exit 1; \
    done

# There is no USER, because only root can change to the owner of a volume. The entry point does this
# before anything else runs.
ENTRYPOINT ["/satmap/container/entrypoint.sh"]
CMD ["satmap", "--help"]
