# The organisers build this without arguments; BASE_IMAGE is for mirrors and machines without one.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="satmap" \
      org.opencontainers.image.description="Satellite images into road graphs with travel times" \
      org.opencontainers.image.licenses="MIT"

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH

# The libraries that rasterio's and lightgbm's wheels want from the system and slim images lack.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /satmap

# Dependencies first: this layer is made again only when the lock changes.
COPY requirements.lock ./
RUN python3 -m venv /opt/venv \
    && pip install --require-hashes --requirement requirements.lock

COPY . .
RUN pip install --no-deps --no-build-isolation --editable . \
    && satmap --version \
    && python -c "import cv2, rasterio, timm, torch, torchvision; import satmap.training.ensemble"

# `--build-arg FETCH_WEIGHTS="sn5-roads"` puts the ImageNet weights of these recipes into the image.
# They lie outside of /satmap/weights, where a mounted directory of weights would hide them;
# trainings look here for what that directory does not have.
ARG FETCH_WEIGHTS=""
ENV SATMAP_ENCODERS=/opt/satmap-encoders
RUN for recipe in ${FETCH_WEIGHTS}; do \
        satmap weights fetch --recipe "$recipe" --weights "$SATMAP_ENCODERS" || exit 1; \
    done

CMD ["satmap", "--help"]
