#include "agent/fuse_connection.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "base/descriptor.h"

namespace weightline {

uint32_t deviceMinorOf(int fd) {
  struct statx status {};
  // What the kernel has in its cache: the server is not asked.
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &status) != 0) return 0;
  return status.stx_dev_major == 0 ? status.stx_dev_minor : 0;
}

bool abortFuseConnection(uint32_t minor) {
  // A mount of our own that nobody else sees: in a container the usual one is not there.
  const Descriptor context(static_cast<int>(::syscall(SYS_fsopen, "fusectl", FSOPEN_CLOEXEC)));
  if (!context.valid() || ::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return false;
  const Descriptor root(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
  if (!root.valid()) return false;
  const std::string path = std::to_string(minor) + "/abort";
  const Descriptor file(::openat(root.get(), path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  return file.valid() && ::write(file.get(), "1", 1) == 1;
}

}  // namespace weightline
