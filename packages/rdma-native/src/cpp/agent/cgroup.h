// Where a process stands among the cgroups: what tells a pod's processes from others.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

namespace weightline {

// Path of the process's cgroup from the top of the hierarchy: of version 2 where that says something, else the longest of
// version 1; "" when it cannot be read. In a cgroup namespace the kernel writes other processes' paths relative to the
// namespace's root (`/../../podX/c`), which hides the pods' common folder: they are made whole with the help of the
// hierarchy below /sys/fs/cgroup. Where that is not seen the path stays as it is, beginning with `/..`.
std::string cgroupOf(pid_t pid);

// The same for the text of /proc/PID/cgroup, as it was written.
struct CgroupPath {
  std::string path;
  bool version2 = false;
};
CgroupPath cgroupFromText(std::string_view text);
// `path`, which begins with `/..`, as seen from `root`; unchanged when it leaves the top.
std::string joinCgroup(std::string_view root, std::string_view path);

}  // namespace weightline
