#include "store/eviction.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "store/files.h"
#include "store/holding.h"

namespace weightline {

namespace {

constexpr const char* kRecord = "record.json";

// Takes a write lease and gives it back at once. False while somebody else has the file.
bool leaseable(int fd, const std::string& path) {
  if (::fcntl(fd, F_SETLEASE, F_WRLCK) == 0) {
    ::fcntl(fd, F_SETLEASE, F_UNLCK);
    return true;
  }
  if (errno == EAGAIN) return false;
  throw systemFault(errno, "asking whether " + path + " is in use").field(path).wayOut("the agent needs CAP_LEASE for files of another user");
}

}  // namespace

bool holdingIsFree(const std::string& store, const std::string& id, std::string& who) {
  const std::string path = holdingFolder(store, id) + "/files";
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return true;
  const Descriptor folder = files::openFolder(path);
  for (const std::string& file : files::listBelow(folder.get())) {
    const Descriptor opened = files::openBelow(folder.get(), file, O_RDONLY | O_NONBLOCK);
    if (!leaseable(opened.get(), file)) {
      who = file;
      return false;
    }
  }
  return true;
}

uint64_t deleteHolding(const std::string& store, const std::string& id) {
  const std::string path = holdingFolder(store, id);
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return 0;
  // A link of that name was not made by us, and what it points at is not ours to delete.
  if (!S_ISDIR(status.st_mode)) throw Fault(Code::kRefused, path + " is no folder").field("holdingId").value(id);
  const Descriptor folder = files::openFolder(path);
  uint64_t freed = 0;
  for (const std::string& name : files::listBelow(folder.get(), true)) {
    if (name == kRecord) continue;
    if (::fstatat(folder.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (S_ISREG(status.st_mode)) {
      const Descriptor file = files::openBelow(folder.get(), name, O_RDONLY | O_NONBLOCK);
      files::setImmutable(file.get(), false);
      if (name.starts_with("files/")) freed += static_cast<uint64_t>(status.st_blocks) * 512;
    }
    if (::unlinkat(folder.get(), name.c_str(), S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0) != 0 && errno != ENOENT) {
      throw systemFault(errno, "deleting " + name + " of holding " + id);
    }
  }
  ::unlinkat(folder.get(), kRecord, 0);
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) throw systemFault(errno, "deleting the folder of holding " + id);
  return freed;
}

}  // namespace weightline
