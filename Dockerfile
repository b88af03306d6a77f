# The organisers build this without arguments; BASE_IMAGE is for mirrors and machines without one.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# The project's files, readable by any user whatever the checkout's modes are. What is moved and
# changed here costs the image nothing.
FROM ${BASE_IMAGE} AS files
COPY . /satmap
RUN chmod -R a+rX /satmap \
    && mkdir -p /satmap/weights /encoders/imagenet \
    # Without --rm, and with any --user, trainings may leave their weights in the container.
    && chmod 0777 /satmap/weights \
    # Encoders' weights lie outside of /satmap/weights, where a volume would hide them.
    && find /satmap/weights -path '*/imagenet/*' -exec mv -t /encoders/imagenet {} + \
    && rm -rf /satmap/weights/imagenet

FROM ${BASE_IMAGE}

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="satmap" \
      org.opencontainers.image.description="Satellite images into road graphs with travel times" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"

# Whoever the container runs as has a home to write to and a name, which torch's caches ask for.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH \
    HOME=/home/satmap \
    LOGNAME=satmap

# The libraries that rasterio's and lightgbm's wheels want from the system and slim images lack; any
# version will do, and bases differ in theirs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home satmap \
    && chmod 1777 /home/satmap

WORKDIR /satmap

# Dependencies first: this layer is made again only when the lock changes. All but one, of Python
# alone, are wheels, so no compiler is needed. requirements-cuda12.lock is for GPUs older than Turing
# and drivers older than CUDA 13.
ARG LOCK=requirements.lock
COPY ${LOCK} ./
RUN python3 -m venv /opt/venv \
    && pip install --require-hashes --only-binary :all: --no-binary pretrainedmodels \
        --requirement "${LOCK}"

COPY --from=files /satmap /satmap
COPY --from=files /encoders /opt/satmap-encoders
# Manifests name the lock by what requirements.lock holds.
RUN if [ "${LOCK}" != requirements.lock ]; then mv "${LOCK}" requirements.lock; fi \
    && pip install --no-deps --no-build-isolation --editable . \
    && python -m compileall -q code

# Is the environment whole? As the user of a container would find it.
RUN ["container/entrypoint.sh", "sh", "-euc", "pip check && satmap --version && python -c 'import cv2, rasterio, timm, torch, torchvision; import satmap.training.train_ensemble' && test \"$(id -u)\" != 0"]

# `--build-arg FETCH_WEIGHTS="sn5-roads"` puts the ImageNet weights of these recipes into the image;
# trainings look here for what weights/imagenet does not have.
ARG FETCH_WEIGHTS=""
ENV SATMAP_ENCODERS=/opt/satmap-encoders \
    SATMAP_SCRATCH=/wdata
RUN for recipe in ${FETCH_WEIGHTS}; do \
        satmap weights fetch --recipe "$recipe" --weights "$SATMAP_ENCODERS" || exit 1; \
    done

# Not USER: volumes have owners of all kinds, and only root can take up the right one's identity.
# The entry point does, before anything else runs.
ENTRYPOINT ["/satmap/container/entrypoint.sh"]
CMD ["satmap", "--help"]
