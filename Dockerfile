# Runs hgrnx on CPU or GPU nodes of a Ray cluster:  docker build -t hgrnx .
# The image holds the pinned environment; `ray job submit --working-dir .` sends the code of the day over it.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hgrnx
WORKDIR /src
COPY constraints.txt ./
# torch first and alone: the largest layer, which changes least.
RUN /opt/hgrnx/bin/pip install -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY hgrnx ./hgrnx
RUN /opt/hgrnx/bin/pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
# DeepSpeed, Triton and the CPU kernel compile small extensions at first use, against Python's headers in this image.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 hgrnx && mkdir /hgrnx && chown hgrnx /hgrnx
COPY --from=build /opt/hgrnx /opt/hgrnx
COPY jobs /opt/hgrnx-jobs
ENV PATH=/opt/hgrnx/bin:$PATH HGRNX_HOME=/hgrnx RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
USER hgrnx
WORKDIR /home/hgrnx
VOLUME /hgrnx
CMD ["hgrnx", "--help"]
