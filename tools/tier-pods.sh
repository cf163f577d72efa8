#!/usr/bin/env bash
# What the tier `pods` needs: root, a cgroup of version 2 in which folders can be made, crun. Exits with a reason where they cannot be had.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "cgroups need root"; exit 77; }
top=
for path in /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ -e "$path/cgroup.procs" ] && { top=$path; break; }
done
[ -n "$top" ] || { echo "cgroup version 2 is not mounted"; exit 77; }
probe=$top/weightline-probe-$$
mkdir "$probe" 2>/dev/null || { echo "no cgroup can be made in $top"; exit 77; }
moved=0
sh -c "echo 0 >'$probe/cgroup.procs'" 2>/dev/null || moved=$?
rmdir "$probe"
[ "$moved" = 0 ] || { echo "no process can be moved to a cgroup in $top"; exit 77; }
if ! command -v crun >/dev/null; then
  command -v apt-get >/dev/null || { echo "crun is missing, and it cannot be installed here"; exit 77; }
  apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends crun >/dev/null
fi
[ -x /usr/bin/python3 ] || { echo "the containers have the Python of /usr/bin, and there is none"; exit 77; }
