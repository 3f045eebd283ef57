# Two images: `service` (the default, without torch) and `trainer`. docker-compose.yml uses both.
#
#   docker build -t dropserve .
#   docker build -t dropserve-trainer --target trainer .

# The dependencies alone, so that no other change to pyproject.toml installs them again.
FROM python:3.11-slim AS requirements
COPY pyproject.toml .
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = project['optional-dependencies']; \
    print(*project['dependencies'], sep='\n', file=open('/service.txt', 'w')); \
    print(*extras['tracing'], *extras['source'], *extras['label-studio'], sep='\n', file=open('/extras.txt', 'w')); \
    print(*extras['training'], sep='\n', file=open('/training.txt', 'w'))"

FROM python:3.11-slim AS dependencies
# Another package index beside the default one, for a CPU build of torch where the default is CUDA's.
ARG PACKAGE_INDEX=
RUN python -m venv --without-pip /venv
COPY constraints.txt /
COPY --from=requirements /service.txt /
RUN pip --python /venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
    ${PACKAGE_INDEX:+--extra-index-url "$PACKAGE_INDEX"} \
    --constraint /constraints.txt --requirement /service.txt

FROM dependencies AS training-dependencies
ARG PACKAGE_INDEX=
COPY --from=requirements /training.txt /
RUN pip --python /venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
    ${PACKAGE_INDEX:+--extra-index-url "$PACKAGE_INDEX"} \
    --constraint /constraints.txt --requirement /training.txt

# 40 MB that inference never opens: tests, model converters, and ONNX Runtime's C library, of which
# its Python module holds a copy.
FROM dependencies AS service-dependencies
ARG PACKAGE_INDEX=
COPY --from=requirements /extras.txt /
RUN pip --python /venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
    ${PACKAGE_INDEX:+--extra-index-url "$PACKAGE_INDEX"} \
    --constraint /constraints.txt --requirement /extras.txt
RUN cd /venv/lib/python3.11/site-packages \
    && find numpy -type d -name tests -prune -exec rm -r {} + \
    && rm -rf onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
        onnxruntime/capi/libonnxruntime.so.*

FROM python:3.11-slim AS base
# A named volume takes the owner of the folder that it is first mounted over.
RUN groupadd --gid 10001 dropserve \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp dropserve \
    && install --directory --owner=10001 --group=10001 /models /models-cache /state
# The root file system may be read-only, so bytecode is made below and all else goes to /tmp.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    # ONNX Runtime's Linux wheels report to their maker unless told not to.
    ORT_DISABLE_TELEMETRY=1
WORKDIR /app
COPY LICENSE .
LABEL org.opencontainers.image.title="Dropserve" \
    org.opencontainers.image.licenses="Apache-2.0"

FROM base AS trainer
LABEL org.opencontainers.image.description="Trains an image classifier and exports it for the service"
COPY --from=training-dependencies /venv /venv
COPY model model
COPY training training
# Writes the bytecode of all that is imported, and fails now rather than when started.
RUN PYTHONDONTWRITEBYTECODE= python -c "import training.pipeline" && find /tmp -mindepth 1 -delete
ENV DROPSERVE_TRAINING_OUTPUT=/models \
    DROPSERVE_TRAINING_RUNS=/tmp/runs \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]

FROM base AS service
LABEL org.opencontainers.image.description="Serves image classifiers that say how sure they are"
COPY --from=service-dependencies /venv /venv
COPY model model
COPY service service
RUN PYTHONDONTWRITEBYTECODE= python -c "import service.app, service.run_server, service.tracing.span_export, obstore"
ENV DROPSERVE_HOST=0.0.0.0 \
    DROPSERVE_PORT=8000 \
    DROPSERVE_MODELS_FOLDER=/models \
    DROPSERVE_CONTROL_FOLDER=/state \
    DROPSERVE_LOG_FORMAT=json
EXPOSE 8000
USER 10001:10001
# http.client, because urllib would ask the proxy that Docker may put into the environment. A port with TLS
# answers plain HTTP with 400, and is asked again by https; whose certificate it is does not matter here.
HEALTHCHECK --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client as h, ssl; t = ssl._create_unverified_context(); p = h.HTTPConnection('127.0.0.1', 8000, timeout=2); p.request('GET', '/health/ready'); r = p.getresponse(); s = h.HTTPSConnection('127.0.0.1', 8000, timeout=2, context=t); r.status != 400 or s.request('GET', '/health/ready'); raise SystemExit((r if r.status != 400 else s.getresponse()).status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
