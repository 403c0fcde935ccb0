# hgrnx on the nodes of a cluster. Three images from one file, with the versions of constraints.txt:
#   docker build --target cpu --build-arg TORCH_INDEX=URL -t hgrnx:cpu .   CPU nodes; URL of PyTorch's index of CPU builds
#   docker build --target gpu -t hgrnx:gpu .                               GPU nodes; torch brings CUDA's libraries
#   docker build --target mlflow -t hgrnx:mlflow .                         MLflow's server
# `ray job submit --working-dir .` sends the code of the day over what is installed here.
ARG PYTHON=3.11-slim-bookworm

# What changes least comes first: torch (the largest layer), the other packages, hgrnx.
FROM python:${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hgrnx
ENV PATH=/opt/hgrnx/bin:$PATH
WORKDIR /src
COPY constraints.txt ./

FROM build AS build-hgrnx
# First and alone, because another package asking for torch in an open range could bring another build.
ARG TORCH_INDEX=
RUN grep '^torch==' constraints.txt > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --no-deps -r torch.txt \
    && pip install -c constraints.txt -r torch.txt
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt && pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY hgrnx ./hgrnx
RUN pip install --no-deps .

FROM build AS build-mlflow
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['server'], sep='\n')" \
    > requirements.txt && pip install -c constraints.txt -r requirements.txt

FROM python:${PYTHON} AS nobody
RUN useradd --create-home --uid 1000 hgrnx && mkdir /hgrnx && chown hgrnx /hgrnx
ENV PATH=/opt/hgrnx/bin:$PATH
WORKDIR /home/hgrnx

FROM nobody AS mlflow
COPY --from=build-mlflow /opt/hgrnx /opt/hgrnx
ENV MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
USER 1000
EXPOSE 5000
# On loopback, unless told otherwise by who has also seen to passwords (cluster/kuberay/mlflow.yaml).
CMD ["mlflow", "server", "--host", "127.0.0.1", "--port", "5000"]

FROM nobody AS cpu
# DeepSpeed, Triton and the CPU kernels compile small extensions at first use, against Python's headers in this image.
# Debian keeps only the newest build of a package, so a pinned version would soon not install.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build-hgrnx /opt/hgrnx /opt/hgrnx
COPY jobs /opt/hgrnx-jobs
ENV HGRNX_HOME=/hgrnx RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
USER 1000
VOLUME /hgrnx
CMD ["hgrnx", "--help"]

# The same with what the NVIDIA runtime needs to be told; build it without TORCH_INDEX.
FROM cpu AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
