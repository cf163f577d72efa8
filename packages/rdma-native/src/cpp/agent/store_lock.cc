#include "agent/store_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "base/fault.h"

namespace weightline {

namespace {

constexpr std::chrono::milliseconds kRetry{20};

bool hasOpen(const std::string& process, const struct stat& wanted) {
  const std::string path = "/proc/" + process + "/fd";
  std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (!folder) return false;
  while (const dirent* entry = ::readdir(folder.get())) {
    struct stat status {};
    if (::stat((path + "/" + entry->d_name).c_str(), &status) == 0 && status.st_ino == wanted.st_ino && status.st_dev == wanted.st_dev) return true;
  }
  return false;
}

// Process ids that have the lock file open: the holder is among them. (/proc/locks names only who took the lock, who may
// have ended since and left it to a child.)
std::string holders(int descriptor) {
  struct stat wanted {};
  ::fstat(descriptor, &wanted);
  const std::string self = std::to_string(::getpid());
  std::string found;
  std::unique_ptr<DIR, int (*)(DIR*)> processes(::opendir("/proc"), ::closedir);
  while (const dirent* entry = processes ? ::readdir(processes.get()) : nullptr) {
    const std::string name = entry->d_name;
    if (name.empty() || name[0] < '0' || name[0] > '9' || name == self) continue;
    if (hasOpen(name, wanted)) found += (found.empty() ? "" : ", ") + name;
  }
  return found.empty() ? "of another container" : found;
}

}  // namespace

StoreLock lockStore(const std::string& path, uint32_t waitMs) {
  StoreLock lock;
  lock.descriptor = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.descriptor.valid()) throw systemFault(errno, "opening the lock " + path).field("--store").value(path);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(waitMs);
  while (::flock(lock.descriptor.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) throw systemFault(errno, "locking " + path);
    if (std::chrono::steady_clock::now() >= deadline) {
      const std::string pids = holders(lock.descriptor.get());
      throw Fault(Code::kInUse, "the store's lock " + path + " is held by process " + pids).field("--store").value(path).limit("one agent per store").wayOut("stop process " + pids + ", or give another --store");
    }
    std::this_thread::sleep_for(kRetry);
  }
  return lock;
}

}  // namespace weightline
