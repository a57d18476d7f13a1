# Osiris in a container. Docker's own defaults forbid every sandbox; docs/operations.md has the flags it needs:
#   --security-opt seccomp=PROFILE         Docker's default profile that also allows clone, unshare, mount, umount2,
#                                          pivot_root and sethostname
#   --security-opt systempaths=unconfined  else /proc cannot be mounted inside; so never run this target as root
#   --security-opt apparmor=unconfined     on hosts with AppArmor
# No capability is needed. `docker exec CONTAINER osiris doctor` says whether it holds.

FROM debian:12-slim AS base
# python3 from Debian, because jails see /usr/bin/python3.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        bubblewrap ca-certificates e2fsprogs git mount python3 python3-venv util-linux \
    && rm -rf /var/lib/apt/lists/*

FROM base AS built
WORKDIR /opt/osiris
COPY requirements/build.txt requirements/machines.txt requirements/
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt -r requirements/machines.txt
COPY pyproject.toml README.md LICENSE ./
COPY osiris osiris
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

# For a virtual machine of its own, such as a Fly Machine: root, so that the sandbox can use cgroups and disk images.
# Its jails run as another user all the same. Not for a container on a shared kernel.
FROM base AS machine
COPY --from=built /opt/osiris/.venv /opt/osiris/.venv
ENV PATH=/opt/osiris/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    OSIRIS_DATA_DIR=/var/lib/osiris \
    OSIRIS_HOST=0.0.0.0 \
    OSIRIS_LOG_FORMAT=json
EXPOSE 8000
CMD ["osiris", "serve"]

# The default: an ordinary user.
FROM machine AS container
RUN useradd --uid 10001 --create-home osiris && install -d -o osiris -g osiris -m 711 /var/lib/osiris
USER osiris
VOLUME /var/lib/osiris
