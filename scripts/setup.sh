#!/usr/bin/env bash
# Install what is missing: `setup.sh run` for what Osiris runs with, `setup.sh dev` for its tests as well,
# `setup.sh fidelity` and `setup.sh bench` for those of `make` on top of that.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-run}
stamp=.venv/.$kind-$(cat requirements/*.txt pyproject.toml | sha256sum | cut -c1-16)

packages=()
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
command -v bwrap >/dev/null || packages+=(bubblewrap)
command -v git >/dev/null || packages+=(git)
PATH=$PATH:/usr/sbin:/sbin command -v mkfs.ext4 >/dev/null || packages+=(e2fsprogs)
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
[ "$kind" != run ] && ! command -v chromium >/dev/null && packages+=(chromium)
[ "$kind" != run ] && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null && packages+=(postgresql)
[ "$kind" != run ] && ! command -v redis-server >/dev/null && packages+=(redis-server)
[ "$kind" != run ] && ! docker compose version >/dev/null 2>&1 && ! command -v docker-compose >/dev/null &&
    packages+=(docker-compose)
# What jails see is /usr: the tests build and test small projects there, as agents do.
for wanted in bin/go:golang-go bin/cargo:cargo bin/node:nodejs bin/npm:npm bin/make:make bin/gcc:gcc bin/pgrep:procps \
    include/stdio.h:libc6-dev bin/pytest-3:python3-pytest; do
    [ "$kind" = run ] || [ -e "/usr/${wanted%%:*}" ] || packages+=("${wanted##*:}")
done
[ "$kind" = bench ] && ! command -v rg >/dev/null && packages+=(ripgrep)  # both for Anthropic's srt
[ "$kind" = bench ] && ! command -v socat >/dev/null && packages+=(socat)

# Tests start servers of their own: while apt installs, none is started, and PostgreSQL makes no database for everybody.
no_start=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/osiris-setup.conf

keep_quiet() {
    [ -e $no_start ] && no_start=
    trap 'loud_again' EXIT
    [ -z "$no_start" ] || printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin $no_start
    "${as_root[@]}" mkdir -p ${no_cluster%/*}
    echo 'create_main_cluster = false' | "${as_root[@]}" install -m 644 /dev/stdin $no_cluster
}

loud_again() {
    trap - EXIT
    "${as_root[@]}" rm -f $no_start $no_cluster
    "${as_root[@]}" rmdir --ignore-fail-on-non-empty --parents ${no_cluster%/*} 2>/dev/null || true
}

if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then as_root=(); elif sudo -n true 2>/dev/null; then as_root=(sudo -n); else
        echo "setup: please install first: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${packages[*]} with apt"
    log=$(mktemp)
    keep_quiet
    if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        echo "setup: apt could not install ${packages[*]}; see $log" >&2
        exit 1
    fi
    rm -f "$log"
    loud_again
    # nor at the machine's next start
    [[ " ${packages[*]} " != *" redis-server "* ]] || "${as_root[@]}" update-rc.d redis-server disable >/dev/null
fi

if [ ! -e "$stamp" ]; then
    echo "setup: installing the locked Python packages into .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
    files=(-r requirements/runtime.txt)
    [ "$kind" != run ] && files=(-r requirements/dev.txt)
    [ "$kind" = fidelity ] && files+=(-r requirements/fidelity.txt)
    VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --compile-bytecode --require-hashes "${files[@]}"
    VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
    touch "$stamp"
fi
