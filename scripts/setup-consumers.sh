#!/usr/bin/env bash
# Installs the real consumers that tests show a finished GGUF to: llama.cpp (npm package node-llama-cpp, its prebuilt
# CPU binary), the PyPI packages gguf and tokenizers, and Chromium, to which reports are shown.
#
#   scripts/setup-consumers.sh
#
# Needs Linux with glibc, node >= 20 with npm, python3 >= 3.11 with venv, and access to the npm and PyPI registries.
# Builds nothing and writes only to .consumers/ (about 500 MB). The versions are pinned in tests/consumers: package.json
# with package-lock.json, and requirements.txt. A folder that already matches its pins is left alone. Chromium is the one of
# the system, or the one that the variable CHROMIUM names; where there is none, it is installed with apt-get, by root only. So is Mesa's
# Vulkan driver for the CPU, without which the tests of GPU kernels are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
pins=$PWD/tests/consumers

die() { echo "setup-consumers.sh: $*" >&2; exit 1; }

# fresh FOLDER STAMP: whether FOLDER was completely installed for what STAMP describes: the platform and the pins.
fresh() { [ "$(cat "$1/.stamp" 2>/dev/null)" = "$2" ]; }

digest() { cat "$@" | sha256sum | cut -d' ' -f1; }

node_consumer() {
    command -v node >/dev/null && command -v npm >/dev/null || die "node and npm are missing; install node 20 or newer"
    local major platform folder=.consumers/node version stamp
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] || die "node $(node -v) is too old; install node 20 or newer"
    platform=$(node -p 'process.platform + "-" + process.arch')
    case $platform in
        linux-x64 | linux-arm64) ;;
        *) die "node-llama-cpp has no prebuilt CPU binary of llama.cpp that these tests know for $platform" ;;
    esac
    stamp="$platform $(digest "$pins/package.json" "$pins/package-lock.json")"
    ! fresh $folder "$stamp" || return 0

    version=$(node -p 'require(process.argv[1]).dependencies["node-llama-cpp"]' "$pins/package.json")
    rm -rf $folder
    mkdir -p $folder
    cp "$pins/package.json" "$pins/package-lock.json" $folder
    (
        # The binaries are optional dependencies, 700 MB with the GPU ones: leave them all out but the one that is named.
        cd $folder &&
            npm install --no-save --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
                "@node-llama-cpp/$platform@$version" &&
            node -e 'import("node-llama-cpp").then((n) => n.getLlama({gpu: false, build: "never", skipDownload: true}))'
    ) || die "installing node-llama-cpp $version into $folder failed, see above"
    echo "$stamp" > $folder/.stamp
}

python_consumer() {
    command -v python3 >/dev/null || die "python3 is missing; install python 3.11 or newer, with venv"
    local version folder=.consumers/python stamp
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 $version is too old; install 3.11 or newer"
    python3 -c 'import venv, ensurepip' 2>/dev/null || die "python3 has no venv; on Debian: apt install python3-venv"
    stamp="python $version $(digest "$pins/requirements.txt")"
    ! fresh $folder "$stamp" || return 0

    {
        python3 -m venv --clear $folder &&
            $folder/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
                --requirement "$pins/requirements.txt" &&
            $folder/bin/python -c 'import gguf, tokenizers'
    } || die "installing the Python packages into $folder failed, see above"
    echo "$stamp" > $folder/.stamp
}

browser_consumer() {
    ! command -v "${CHROMIUM:-chromium}" >/dev/null || return 0
    local hint="install it (on Debian: apt-get install chromium), or name another one: CHROMIUM=google-chrome $0"
    [ -z "${CHROMIUM:-}" ] || die "there is no $CHROMIUM, which the variable CHROMIUM names"
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "chromium is missing; $hint"
    {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
    } || die "installing chromium failed, see above; $hint"
}

# The driver that computes on the CPU, for tests of what runs on a GPU; they are skipped where there is none.
driver_consumer() {
    ! compgen -G "/usr/share/vulkan/icd.d/lvp_icd*.json" >/dev/null || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers libvulkan1 >/dev/null; then
        return 0
    fi
    echo "setup-consumers.sh: no Mesa driver for Vulkan, so tests of GPU kernels will be SKIPPED;" \
        "on Debian: apt-get install mesa-vulkan-drivers libvulkan1" >&2
}

node_consumer
python_consumer
browser_consumer
driver_consumer
