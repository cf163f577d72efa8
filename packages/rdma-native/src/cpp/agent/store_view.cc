#include "agent/store_view.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/fault.h"
#include "store/files.h"
#include "store/holding.h"

namespace weightline {

namespace {

// A private copy of the mount that is attached nowhere, made read-only (kernel 5.12, CAP_SYS_ADMIN).
Descriptor detachedReadOnly(const std::string& store) {
  Descriptor tree(static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, store.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
  if (!tree.valid()) return {};
  struct mount_attr attributes {};
  attributes.attr_set = MOUNT_ATTR_RDONLY;
  if (::syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) != 0) return {};
  return tree;
}

Descriptor givenMount(const std::string& store, const std::string& mount) {
  Descriptor root = files::openFolder(mount);
  const auto refuse = [&](const std::string& why) {
    return Fault(Code::kRefused, "--store-ro " + mount + " " + why).field("--store-ro").value(mount).wayOut("mount the folder of --store there once more, read-only");
  };
  struct statvfs system {};
  if (::fstatvfs(root.get(), &system) != 0 || (system.f_flag & ST_RDONLY) == 0) throw refuse("is not mounted read-only");
  struct stat own {}, theirs {};
  if (::stat(store.c_str(), &own) != 0 || ::fstat(root.get(), &theirs) != 0 || own.st_ino != theirs.st_ino || own.st_dev != theirs.st_dev) {
    throw refuse("is not the folder of --store " + store);
  }
  return root;
}

}  // namespace

StoreView::StoreView(const std::string& store, const std::string& readOnlyMount) {
  if (!readOnlyMount.empty()) {
    root_ = givenMount(store, readOnlyMount);
    level_ = Level::kReadOnlyMount;
    return;
  }
  root_ = detachedReadOnly(store);
  level_ = Level::kDetachedMount;
  if (root_.valid()) return;
  root_ = files::openFolder(store);
  level_ = Level::kPlain;
}

Descriptor StoreView::open(const std::string& holdingId, const std::string& path) const {
  if (!validHoldingId(holdingId)) throw Fault(Code::kInvalidArgument, "\"" + holdingId + "\" is no holding id").field("holdingId").value(holdingId);
  if (!safeRelativePath(path)) throw Fault(Code::kInvalidArgument, "\"" + path + "\" leaves the holding's folder").field("path").value(path);
  Descriptor file = files::openBelow(root_.get(), "holdings/" + holdingId + "/" + path, O_RDONLY | O_NONBLOCK);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) throw Fault(Code::kCorrupt, path + " of holding " + holdingId + " is not a regular file").field(path);
  return file;
}

}  // namespace weightline
