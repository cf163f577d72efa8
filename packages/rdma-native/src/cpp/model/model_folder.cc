#include "model/model_folder.h"

#include <dirent.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <memory>

#include "base/fault.h"
#include "layout/layout.h"

namespace weightline {

namespace {

constexpr int kMaxFolderDepth = 32;
// Far above the limit of segments, which is checked afterwards with a better message.
constexpr size_t kMaxListedFiles = 100'000;

std::string linkTarget(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t n = ::readlink(path.c_str(), target, sizeof(target));
  return n < 0 ? "?" : std::string(target, static_cast<size_t>(n));
}

class Lister {
 public:
  Lister(std::string bound, const Cancel& cancel) : bound_(std::move(bound)), cancel_(cancel) {}

  void list(const std::string& folder, const std::string& prefix, int depth) {
    cancel_.check();
    if (depth > kMaxFolderDepth) throw Fault(Code::kRefused, folder + " lies deeper than " + std::to_string(kMaxFolderDepth) + " folders").field(folder);
    std::unique_ptr<DIR, int (*)(DIR*)> stream(::opendir(folder.c_str()), ::closedir);
    if (!stream) throw systemFault(errno, "reading the folder " + folder).field(folder);
    while (const dirent* entry = ::readdir(stream.get())) {
      const std::string name = entry->d_name;
      if (!name.starts_with('.')) add(folder + "/" + name, prefix + name, depth);
    }
  }

  std::map<std::string, FolderEntry> found;

 private:
  void add(const std::string& path, const std::string& relative, int depth) {
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) return;  // gone meanwhile
    const std::string real = S_ISLNK(status.st_mode) ? follow(path, relative, status) : path;
    if (S_ISDIR(status.st_mode)) {
      list(real, relative + "/", depth + 1);
      return;
    }
    if (found.size() >= kMaxListedFiles) throw Fault(Code::kRefused, "more than " + std::to_string(kMaxListedFiles) + " files").limit(std::to_string(kMaxListedFiles));
    if (!safeRelativePath(relative)) {
      throw Fault(Code::kRefused, path + " has a name that cannot be kept: it must be UTF-8, at most 255 bytes").field(path);
    }
    found[relative] = S_ISREG(status.st_mode) ? FolderEntry{real, "file"} : FolderEntry{"", typeName(status.st_mode)};
  }

  std::string follow(const std::string& path, const std::string& relative, struct stat& status) const {
    char resolved[PATH_MAX];
    if (::realpath(path.c_str(), resolved) == nullptr || ::stat(resolved, &status) != 0) {
      throw Fault(Code::kRefused, "the link " + relative + " points to " + linkTarget(path) + ", which is not there; incomplete download?")
          .field(relative).value(linkTarget(path)).wayOut("fetch the model again");
    }
    if (!isWithin(resolved, bound_)) {
      throw Fault(Code::kRefused, "the link " + relative + " leads to " + resolved + ", outside " + bound_)
          .field(relative).value(resolved).limit("below " + bound_).wayOut("copy the file into the folder");
    }
    return resolved;
  }

  const std::string bound_;
  const Cancel& cancel_;
};

}  // namespace

std::map<std::string, FolderEntry> listModelFolder(const std::string& folder, const std::string& bound, const Cancel& cancel) {
  Lister lister(bound, cancel);
  lister.list(folder, "", 0);
  return std::move(lister.found);
}

std::string resolvePath(const std::string& path) {
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved) != nullptr) return resolved;
  if (errno == ENOENT || errno == ENOTDIR) throw Fault(Code::kNotFound, path + " does not exist here").field("path").value(path);
  throw systemFault(errno, "looking for " + path).field("path").value(path);
}

bool isWithin(const std::string& path, const std::string& root) {
  return root == "/" || path == root || path.starts_with(root + "/");
}

std::string typeName(mode_t mode) {
  if (S_ISREG(mode)) return "file";
  if (S_ISDIR(mode)) return "folder";
  if (S_ISFIFO(mode)) return "FIFO";
  if (S_ISSOCK(mode)) return "socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "device";
  return "link";
}

}  // namespace weightline
