# syntax=docker/dockerfile:1
# pocket on CPUs:  docker build -t filmlet .
# every model:     --build-arg EXTRAS=s3,torch
# on CUDA:         --build-arg EXTRAS=s3,torch --build-arg TORCH_INDEX=https://pypi.org/simple
# Weights:  --build-arg BAKE="ltxv-2b-0.9.8-distilled" puts them into the image.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build
ARG EXTRAS=s3
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/build/constraints.txt
RUN python -m venv /opt/filmlet
ENV PATH=/opt/filmlet/bin:$PATH
WORKDIR /build
# torch first and alone: it is most of the image, and changes least. PIP_CONSTRAINT pins all.
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN case "$EXTRAS" in *torch*) \
    pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch ;; esac
COPY pyproject.toml README.md LICENSE ./
COPY src src
# hadolint ignore=DL3013
RUN pip install ".[$EXTRAS]"

ENV HF_HOME=/opt/weights
ARG BAKE=""
RUN mkdir -p "$HF_HOME" && for model in $BAKE; do filmlet models pull "$model" || exit 1; done

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 1000 --create-home filmlet && install -d -o filmlet /var/lib/filmlet
COPY --from=build /opt/filmlet /opt/filmlet
COPY --from=build --chown=filmlet /opt/weights /opt/weights
ENV PATH=/opt/filmlet/bin:$PATH HF_HOME=/opt/weights FILMLET_HOME=/var/lib/filmlet \
    FILMLET_CACHE=/var/lib/filmlet/compiled
USER 1000
VOLUME /var/lib/filmlet
EXPOSE 7860
HEALTHCHECK --interval=15s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/health', timeout=5)"]
ENTRYPOINT ["filmlet"]
CMD ["serve", "--host", "0.0.0.0"]
