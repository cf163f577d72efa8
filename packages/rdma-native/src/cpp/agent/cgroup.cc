#include "agent/cgroup.h"

#include <dirent.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <sstream>

#ifndef CGROUP2_SUPER_MAGIC
#define CGROUP2_SUPER_MAGIC 0x63677270
#endif

namespace weightline {

namespace {

// Where version 2 is mounted: alone, or beside version 1.
constexpr std::string_view kMounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
// Folders of cgroups are never this deep; a bound for the search.
constexpr int kMaxDepth = 32;

std::string readText(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool isRelative(std::string_view path) { return path == "/.." || path.starts_with("/../"); }

bool hasProcess(const std::string& folder, pid_t pid) {
  std::ifstream file(folder + "/cgroup.procs");
  for (pid_t one = 0; file >> one;) {
    if (one == pid) return true;
  }
  return false;
}

// The folder below `folder` whose processes include `pid`; "" when there is none.
std::string findProcess(const std::string& folder, pid_t pid, int depth) {
  if (hasProcess(folder, pid)) return folder;
  if (depth == kMaxDepth) return "";
  std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(folder.c_str()), ::closedir);
  while (const dirent* entry = entries ? ::readdir(entries.get()) : nullptr) {
    const std::string_view name = entry->d_name;
    if (entry->d_type != DT_DIR || name == "." || name == "..") continue;
    const std::string found = findProcess(folder + "/" + std::string(name), pid, depth + 1);
    if (!found.empty()) return found;
  }
  return "";
}

// The root of this process's cgroup namespace from the top of the hierarchy; "" when the hierarchy is not seen.
std::string findNamespaceRoot() {
  const CgroupPath self = cgroupFromText(readText("/proc/self/cgroup"));
  const std::string own = self.version2 ? self.path : "/";
  for (const std::string_view mount : kMounts) {
    struct statfs system {};
    if (::statfs(std::string(mount).c_str(), &system) != 0 || system.f_type != CGROUP2_SUPER_MAGIC) continue;
    // In a container's own mount the top is the namespace's root, and this finds nothing above it.
    std::string found = findProcess(std::string(mount), ::getpid(), 0);
    if (found.size() <= mount.size()) continue;
    found.erase(0, mount.size());
    if (own == "/") return found;
    if (found.ends_with(own) && found.size() > own.size()) return found.substr(0, found.size() - own.size());
  }
  return "";
}

// Sought once: a process does not change its namespace.
const std::string& namespaceRoot() {
  static const std::string root = findNamespaceRoot();
  return root;
}

}  // namespace

CgroupPath cgroupFromText(std::string_view text) {
  CgroupPath best;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const size_t controllers = line.find(':');
    const size_t path = controllers == std::string_view::npos ? controllers : line.find(':', controllers + 1);
    if (path == std::string_view::npos) continue;
    const std::string_view found = line.substr(path + 1);
    if (line.starts_with("0::") && found != "/") return {std::string(found), true};
    if (found.size() > best.path.size()) best.path = found;
  }
  return best;
}

std::string joinCgroup(std::string_view root, std::string_view path) {
  std::string joined(root);
  std::string_view rest = path;
  while (isRelative(rest)) {
    const size_t slash = joined.rfind('/');
    if (slash == std::string::npos) return std::string(path);
    joined.erase(slash);
    rest.remove_prefix(3);
  }
  joined += rest;
  return joined.empty() ? "/" : joined;
}

std::string cgroupOf(pid_t pid) {
  const CgroupPath found = cgroupFromText(readText("/proc/" + std::to_string(pid) + "/cgroup"));
  if (!found.version2 || !isRelative(found.path) || namespaceRoot().empty()) return found.path;
  return joinCgroup(namespaceRoot(), found.path);
}

}  // namespace weightline
