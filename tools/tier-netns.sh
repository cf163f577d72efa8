#!/usr/bin/env bash
# What the tier `netns` needs: root, ip for network namespaces of the tests' own, and nft to break the links in them.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "network namespaces need root"; exit 77; }
if ! command -v ip >/dev/null || ! command -v sysctl >/dev/null || ! command -v nft >/dev/null; then
  command -v apt-get >/dev/null || { echo "iproute2 or nftables is missing, and it cannot be installed here"; exit 77; }
  apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends iproute2 procps nftables >/dev/null
fi
name=wl-probe-$$
ip netns add "$name" 2>/dev/null || { echo "network namespaces cannot be made here"; exit 77; }
ip netns del "$name"
