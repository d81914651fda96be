# Two images of one code base:
#
#   docker build --target node     -t grapevine-node .        a member's node, for release
#   docker build --target scenario -t grapevine-scenario .    the same, and the scenarios: for research
#
# Build arguments:
#
#   TORCH_INDEX=URL    take PyTorch from this package index too: PyTorch's own index of CPU builds
#                      makes an image of about 1 GB; without it pip's default build is taken, which
#                      on x86 carries CUDA and several gigabytes
#   PYTHON_IMAGE=NAME  build on this image: Debian with Python 3.11 to 3.13 and pip
#
# The node image holds no scenarios package: nothing in it can fake a link, attack or inject a fault.
ARG PYTHON_IMAGE=python:3.11-slim

# ── what is to be installed: the next layers are made again when this changes, and only then ──
FROM ${PYTHON_IMAGE} AS requirements
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > /requirements.txt

# ── dependencies, shared by both images: an environment without pip, so that who breaks into a
#    node finds no installer there. What no node reads goes: PyTorch's headers and test programs, and
#    the libraries' own tests; in the same step, or it would stay in the image ──
FROM ${PYTHON_IMAGE} AS dependencies
ARG TORCH_INDEX=
COPY --from=requirements /requirements.txt /opt/
RUN python3 -m venv --without-pip /opt/grapevine \
 && python3 -m pip --python /opt/grapevine/bin/python install --no-cache-dir --quiet \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r /opt/requirements.txt \
 && cd /opt/grapevine/lib/python3*/site-packages \
 && rm -rf torch/include torch/share torch/test torch/lib/*.a \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && echo /opt/app > grapevine.pth \
 && /opt/grapevine/bin/python -c 'import torch; print("PyTorch", torch.__version__, "for", "CUDA: set TORCH_INDEX for a small image" if torch.version.cuda else "CPU")'

# ── what packs the application and lists what the image is made of; not in what runs ──
FROM dependencies AS tools
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir --quiet "cyclonedx-bom>=7,<8" "hatchling>=1.24"

# ── the application, with and without scenarios ──
FROM tools AS build-node
WORKDIR /build
COPY pyproject.toml README.md LICENSE grapevine.py ./
COPY deploy/sbom.py deploy/sbom.py
COPY topology topology
COPY crypto crypto
COPY node node
RUN /opt/tools/bin/pip wheel --no-cache-dir --quiet --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/tools/bin/pip --python /opt/grapevine/bin/python install --no-cache-dir --quiet \
      --no-deps --target /opt/app dist/*.whl \
 && python3 deploy/sbom.py --tools /opt/tools --environment /opt/grapevine --image grapevine-node > /opt/app/sbom.cdx.json

FROM tools AS build-scenario
WORKDIR /build
COPY pyproject.toml README.md LICENSE grapevine.py ./
COPY deploy/sbom.py deploy/sbom.py
COPY topology topology
COPY crypto crypto
COPY node node
COPY scenarios scenarios
RUN /opt/tools/bin/pip wheel --no-cache-dir --quiet --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/tools/bin/pip --python /opt/grapevine/bin/python install --no-cache-dir --quiet \
      --no-deps --target /opt/app dist/*.whl \
 && python3 deploy/sbom.py --tools /opt/tools --environment /opt/grapevine --image grapevine-scenario > /opt/app/sbom.cdx.json

# ── what runs ──
FROM dependencies AS runtime
# The state directory belongs to the user: a new volume there takes over owner and mode.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin grapevine \
 && install -d -o grapevine -g grapevine -m 0700 /var/lib/grapevine \
 && install -d /etc/grapevine
ENV PATH=/opt/app/bin:/opt/grapevine/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    GRAPEVINE_STATE=/var/lib/grapevine
VOLUME /var/lib/grapevine
WORKDIR /
EXPOSE 7400
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
  CMD ["grapevine", "status", "--alive"]
ENTRYPOINT ["grapevine"]
CMD ["start", "/etc/grapevine/node.toml"]

FROM runtime AS scenario
COPY --from=build-scenario /opt/app /opt/app

# the last one is what `docker build .` makes
FROM runtime AS node
COPY --from=build-node /opt/app /opt/app
