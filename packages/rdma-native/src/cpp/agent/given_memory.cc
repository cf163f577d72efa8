#include "agent/given_memory.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <string>

#include "base/fault.h"

namespace weightline {

namespace {

constexpr uint64_t kBlockBytes = 512;  // of st_blocks

Fault refused(const std::string& what, const std::string& value, const std::string& limit, const std::string& wayOut) {
  return Fault(Code::kRefused, "the memory given " + what).field("memory").value(value).limit(limit).wayOut(wayOut);
}

struct stat statusOf(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw systemFault(errno, "looking at the memory given");
  return status;
}

void checkSize(const struct stat& status, uint64_t bytes) {
  const auto actual = static_cast<uint64_t>(status.st_size);
  if (actual == bytes) return;
  throw refused(std::string("is ") + (actual > bytes ? "larger" : "smaller") + " than announced: " + std::to_string(actual) + " bytes, not " + std::to_string(bytes),
                std::to_string(actual), std::to_string(bytes), "make it exactly as large as its segment in the layout");
}

}  // namespace

void sealMemory(int fd, uint64_t bytes) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) throw systemFault(errno, "looking at the memory given");
  if ((flags & O_ACCMODE) != O_RDWR || (flags & O_PATH) != 0) {
    throw refused("is not open for reading and writing", "read-only or write-only", "read and write", "give the descriptor that memfd_create returned");
  }
  // The kernel answers this by itself, and only for memfds: a file system that asks another process has not been touched.
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) throw refused("is no memfd", "another kind of file", "a memfd", "make it with memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)");
  struct statfs system {};
  if (::fstatfs(fd, &system) != 0) throw systemFault(errno, "looking at the memory given");
  if (system.f_type != TMPFS_MAGIC) throw refused("is made of huge pages of hugetlbfs", "hugetlbfs", "tmpfs", "make it without MFD_HUGETLB");
  if ((seals & F_SEAL_SEAL) != 0 && (seals & kMemorySeals) != kMemorySeals) {
    throw refused("cannot be sealed", "F_SEAL_SEAL is set", "F_SEAL_WRITE, F_SEAL_SHRINK and F_SEAL_GROW", "make it with memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)");
  }
  checkSize(statusOf(fd), bytes);
  if ((seals & kMemorySeals) != kMemorySeals && ::fcntl(fd, F_ADD_SEALS, kMemorySeals) != 0) {
    if (errno == EBUSY) {
      throw refused("is still mapped for writing or pinned", "EBUSY", "nobody can write to it any more",
                    "unmap it, and end io_uring buffers, direct I/O and RDMA registrations on it before it is given");
    }
    throw systemFault(errno, "sealing the memory given");
  }
  // Only now nobody can change it between the look and the use.
  const struct stat status = statusOf(fd);
  checkSize(status, bytes);
  const uint64_t there = static_cast<uint64_t>(status.st_blocks) * kBlockBytes;
  if (there < bytes) {
    throw refused("is sparse: " + std::to_string(there) + " of " + std::to_string(bytes) + " bytes are there", std::to_string(there), std::to_string(bytes),
                  "write all of it, or take its pages with fallocate");
  }
}

}  // namespace weightline
