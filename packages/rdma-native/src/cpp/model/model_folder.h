// What lies in a model's folder, links resolved and kept inside their bounds.
#pragma once

#include <sys/stat.h>

#include <map>
#include <string>
#include <vector>

#include "base/cancel.h"

namespace weightline {

struct FolderEntry {
  std::string real;  // absolute, links resolved; empty for what is no regular file
  std::string type;  // "file", "FIFO", "socket", "device"
};

// Files below `folder` by relative path, hidden names left out. A link must end inside `bound` (absolute, resolved).
// Throws Refused naming link and target for any other, and for a dangling one.
std::map<std::string, FolderEntry> listModelFolder(const std::string& folder, const std::string& bound, const Cancel& cancel);

// realpath; throws NotFound "PATH does not exist here", PermissionDenied and the like.
std::string resolvePath(const std::string& path);
// True when `path` is `root` or below it; both absolute and resolved.
bool isWithin(const std::string& path, const std::string& root);
std::string typeName(mode_t mode);

}  // namespace weightline
