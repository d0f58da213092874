# shellcheck shell=bash
# Installs what deploy/lab and deploy/test need: Debian packages, and a virtual environment in the
# checkout. Sourced; call `bootstrap lab` or `bootstrap test`. Sets CHECKOUT and PYTHON.
# A second call installs nothing and says nothing. GDOI_VENV puts the environment elsewhere.

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${GDOI_VENV:-$CHECKOUT/.venv}
PYTHON=$VENV/bin/python

# What the lab runs (tcpdump for the capture), and what the tests need beyond that.
PACKAGES_LAB="python3 python3-venv iproute2 kmod mount tcpdump user-mode-linux util-linux"
PACKAGES_TEST="$PACKAGES_LAB gcc libc6-dev libssl-dev iptables postgresql smcroute procps tshark chromium-headless-shell prometheus systemd charon-systemd libstrongswan-standard-plugins groff-base zsh"

_fail() {
    echo "bootstrap: $*" >&2
    exit 1
}

# _step TEXT COMMAND...: one line with its duration; the command's output only if it fails.
_step() {
    local text=$1 begin=$SECONDS log status=0
    shift
    log=$(mktemp)
    printf 'bootstrap: %s ...' "$text" >&2
    "$@" </dev/null >"$log" 2>&1 9>&- || status=$?
    if [ "$status" -ne 0 ]; then
        printf ' failed after %d s\n' $((SECONDS - begin)) >&2
        tail -n 30 "$log" >&2
    else
        printf ' %d s\n' $((SECONDS - begin)) >&2
    fi
    rm -f "$log"
    return "$status"
}

_missing_packages() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            echo "$package"
    done
}

_apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

_install_packages() {
    local missing
    missing=$(_missing_packages "$@" | tr '\n' ' ')
    missing=${missing% }
    [ -n "$missing" ] || return 0
    _step "reading Debian's package lists" _apt update ||
        _fail "apt-get update failed: is there a network?"
    # shellcheck disable=SC2086
    _step "installing Debian packages: $missing" _apt install --no-install-recommends $missing ||
        _fail "apt-get could not install: $missing"
}

# What the environment was made from: another answer, another environment.
_stamp() {
    { echo "$1 $CHECKOUT"; /usr/bin/python3 -VV; cat "$CHECKOUT/pyproject.toml"; } |
        sha256sum | cut -d' ' -f1
}

_stamped() {
    [ -x "$PYTHON" ] && [ -f "$VENV/.gdoi-$1" ] && [ "$(cat "$VENV/.gdoi-$1")" = "$(_stamp "$1")" ]
}

_install_environment() {
    local kind=$1 what=$CHECKOUT
    # The test environment is the lab's and more, so it serves both.
    _stamped "$kind" || { [ "$kind" = lab ] && _stamped test; } && return 0
    # Scripts in a copied or moved environment would start the Python of the old place.
    if ! [ -x "$PYTHON" ] || ! "$PYTHON" -c '' 2>/dev/null ||
        ! grep -qsF "$VENV" "$VENV/bin/activate"; then
        _step "making a Python environment in $VENV" /usr/bin/python3 -m venv --clear "$VENV" ||
            _fail "no Python environment could be made in $VENV"
    fi
    rm -f "$VENV/.gdoi-lab" "$VENV/.gdoi-test"
    [ "$kind" = lab ] || what="${CHECKOUT}[test]"
    _step "installing Python packages for the $kind" \
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input -e "$what" ||
        _fail "pip could not install the Python packages: is there a network?"
    _stamp "$kind" >"$VENV/.gdoi-$kind"
}

bootstrap() {
    local kind=$1 packages=$PACKAGES_LAB
    [ "$kind" = lab ] || packages=$PACKAGES_TEST
    [ "$(id -u)" -eq 0 ] || _fail "must run as root (packages, network namespaces): use sudo"
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        _fail "this is not Debian: no apt-get; Debian 12 or later is needed"
    # Two runs at once: the second waits for the first and then finds everything done.
    exec 9>/run/gdoi-bootstrap.lock
    if ! flock -n 9; then
        echo "bootstrap: another run is installing, waiting for it" >&2
        flock 9
    fi
    # shellcheck disable=SC2086
    _install_packages $packages
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        _fail "/usr/bin/python3 is older than 3.11; Debian 12 or later is needed"
    _install_environment "$kind"
    exec 9>&-
}
