# Sluice as an image. How to run it, and what a container cannot do: docs/install.md.

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends clang libbpf-dev make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Makefile pyproject.toml ./
COPY bpf/ bpf/
# The Makefile knows how objects are compiled; the stamp tells it that what it needs is installed.
RUN mkdir .build && touch .build/apt-build && make bpf
COPY parsers/ parsers/
COPY policies/ policies/
COPY proxy/ proxy/
RUN python -m venv /opt/sluice && /opt/sluice/bin/pip install --no-cache-dir .

FROM python:3.11-slim-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends libbpf1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/sluice /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH
ENTRYPOINT ["sluice"]
CMD ["run", "-f", "/etc/sluice/policies", "--audit", "-", "--hold-on-exit"]
