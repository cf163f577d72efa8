#include "agent/store_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <memory>
#include <thread>

#include "base/fault.h"

namespace weightline {

namespace {

constexpr std::chrono::milliseconds kRetry{20};

// True when this open file is the one that carries the lock: a process that waits for it has the file open, too.
bool carriesLock(const std::string& fdinfo) {
  std::ifstream file(fdinfo);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("lock:") && line.find("FLOCK") != std::string::npos) return true;
  }
  return false;
}

bool holdsLock(const std::string& process, const struct stat& wanted) {
  const std::string path = "/proc/" + process + "/fd";
  std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  while (const dirent* entry = folder ? ::readdir(folder.get()) : nullptr) {
    struct stat status {};
    if (::stat((path + "/" + entry->d_name).c_str(), &status) != 0 || status.st_ino != wanted.st_ino || status.st_dev != wanted.st_dev) continue;
    if (carriesLock("/proc/" + process + "/fdinfo/" + entry->d_name)) return true;
  }
  return false;
}

// Process ids that hold the lock, as far as they can be seen. (/proc/locks names only who took it, who may have ended since and left it to a child.)
std::string holders(int descriptor) {
  struct stat wanted {};
  ::fstat(descriptor, &wanted);
  std::string found;
  std::unique_ptr<DIR, int (*)(DIR*)> processes(::opendir("/proc"), ::closedir);
  while (const dirent* entry = processes ? ::readdir(processes.get()) : nullptr) {
    const std::string name = entry->d_name;
    if (name.empty() || name[0] < '0' || name[0] > '9' || !holdsLock(name, wanted)) continue;
    found += (found.empty() ? "" : ", ") + name;
  }
  return found;
}

}  // namespace

StoreLock lockStore(const std::string& path, uint32_t waitMs, const std::atomic<bool>& stop) {
  StoreLock lock;
  lock.descriptor = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.descriptor.valid()) throw systemFault(errno, "opening the lock " + path).field("--store").value(path);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(waitMs);
  while (::flock(lock.descriptor.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) throw systemFault(errno, "locking " + path);
    if (std::chrono::steady_clock::now() >= deadline) {
      const std::string pids = holders(lock.descriptor.get());
      const std::string who = pids.empty() ? "a process of another container or user" : "process " + pids;
      throw Fault(Code::kInUse, "the store's lock " + path + " is held by " + who).field("--store").value(path).limit("one agent per store").wayOut("stop " + who + ", or give another --store");
    }
    if (stop) throw Fault(Code::kCancelled, "waiting for the store's lock " + path + " was given up").field("--store").value(path);
    std::this_thread::sleep_for(kRetry);
  }
  return lock;
}

}  // namespace weightline
