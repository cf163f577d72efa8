// Processes by pidfd, and who is at the other end of a socket (native.md, rule 7).
#pragma once

#include <node_api.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/descriptor.h"

namespace weightline {

// A process that cannot be confused with a later one of the same number.
struct Process {
  static constexpr const char* kName = "process";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x03};
  Descriptor pidfd;
  pid_t pid = 0;
  std::vector<uint64_t> watches;  // ids in the watcher

  bool alive() const;
};

struct PeerProcess {
  std::shared_ptr<Process> process;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string cgroup;
  bool fromSocket = false;  // SO_PEERPIDFD; else pidfd_open
};

// The number of the process that connected; 0 when the kernel does not tell.
pid_t connectedPid(int socket);

// The peer of a connected Unix socket, as it was when it connected. Throws Refused when the process has ended, or when it
// has no number in this process's pid namespace.
PeerProcess peerOf(int socket);
// The process that has this number now. Throws NotFound when there is none.
PeerProcess processOf(pid_t pid);

}  // namespace weightline
