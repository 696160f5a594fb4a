# Training, with the locked packages and without root:
#
#   docker build -t attnseg .                          with CUDA; --build-arg TORCH=cpu: without
#   docker run --rm --gpus all --shm-size=8g --user "$(id -u):$(id -g)" \
#     -v "$PWD:/project" -v DIR:/images:ro attnseg train trainer=gpu dataset=uw_madison \
#     dataset.root=/images
#
# Prepared data, run folders and a folder configs/ of your own are those of the folder on /project.
FROM python:3.12-slim-bookworm
ARG TORCH=cuda
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/attnseg
COPY pyproject.toml README.md LICENSE train.py ./
COPY requirements requirements
COPY scripts scripts
COPY configs configs
COPY src src
# The compiler is for trainer.compile.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN TORCH=$TORCH PIP_NO_CACHE_DIR=1 python scripts/setup.py \
    && .venv/bin/python -m compileall -q src \
    && mkdir /project && chown 1000:1000 /project
# Caches are in /tmp, since any user may run this, also one without a home.
ENV PATH=/opt/attnseg/.venv/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /project
ENTRYPOINT ["attnseg"]
CMD ["--help"]
