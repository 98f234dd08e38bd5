# One image for every program of the fleet: the command says which. Nothing secret is in it.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/agentq
WORKDIR /build
# What is depended on first: a change in the code alone then reuses this layer. The lock's development
# tools are constraints, not wishes: what the package does not ask for is not installed.
COPY pyproject.toml requirements.lock README.md ./
RUN mkdir agentq && touch agentq/__init__.py \
    && /opt/agentq/bin/pip install --constraint requirements.lock '.[demo]' \
    && /opt/agentq/bin/pip uninstall --yes agentq
COPY agentq agentq
RUN /opt/agentq/bin/pip install --no-deps .

FROM python:3.13-slim
# A number, so that orchestrators can see that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin agentq
COPY --from=build /opt/agentq /opt/agentq
WORKDIR /app
COPY config config
COPY tasks tasks
ENV PATH=/opt/agentq/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
# Celery drains on SIGTERM; whoever stops it must wait longer than AGENTQ_DRAIN_S.
STOPSIGNAL SIGTERM
# Whether this container's own worker process is alive, as Postgres has heard from it.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 \
    CMD ["agentq", "fleet", "ls", "--here"]
ENTRYPOINT ["agentq"]
CMD ["worker"]
