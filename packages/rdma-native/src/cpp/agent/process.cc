#include "agent/process.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>

#include "base/fault.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // kernel 6.5, include/uapi/asm-generic/socket.h
#endif

namespace weightline {

namespace {

// The path of cgroup version 2, else the longest of version 1.
std::string cgroupOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/cgroup");
  std::string line, best;
  while (std::getline(file, line)) {
    const size_t path = line.find(':', line.find(':') + 1);
    if (path == std::string::npos) continue;
    const std::string found = line.substr(path + 1);
    if (line.starts_with("0::") && found != "/") return found;
    if (found.size() > best.size()) best = found;
  }
  return best;
}

Fault ended(pid_t pid) { return Fault(Code::kRefused, "the calling process " + std::to_string(pid) + " has ended").field("pid").value(std::to_string(pid)); }

// Reads the cgroup of a process that is proved to be alive afterwards: its number has not been given to another meanwhile.
void readCgroup(PeerProcess& peer) {
  peer.cgroup = cgroupOf(peer.process->pid);
  if (!peer.process->alive()) throw ended(peer.process->pid);
}

}  // namespace

bool Process::alive() const {
  pollfd entry{pidfd.get(), POLLIN, 0};
  return pidfd.valid() && ::poll(&entry, 1, 0) == 0;
}

pid_t pidOf(int pidfd) {
  std::ifstream file("/proc/self/fdinfo/" + std::to_string(pidfd));
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with("Pid:")) return static_cast<pid_t>(std::atoi(line.c_str() + 4));
  }
  return -1;
}

PeerProcess peerOf(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) throw systemFault(errno, "asking who is at the socket");
  PeerProcess peer;
  peer.process = std::make_shared<Process>();
  peer.process->pid = credentials.pid;
  peer.uid = credentials.uid;
  peer.gid = credentials.gid;
  int pidfd = -1;
  length = sizeof(pidfd);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0) {
    peer.fromSocket = true;
  } else if (errno == EINVAL || errno == ENOPROTOOPT) {
    pidfd = static_cast<int>(::syscall(SYS_pidfd_open, credentials.pid, 0));
  }
  if (pidfd < 0) throw ended(credentials.pid);
  peer.process->pidfd = Descriptor(pidfd);
  readCgroup(peer);
  return peer;
}

PeerProcess processOf(pid_t pid) {
  PeerProcess peer;
  peer.process = std::make_shared<Process>();
  peer.process->pid = pid;
  peer.process->pidfd = Descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!peer.process->pidfd.valid()) throw systemFault(errno, "opening process " + std::to_string(pid)).field("pid").value(std::to_string(pid));
  struct stat status {};
  if (::stat(("/proc/" + std::to_string(pid)).c_str(), &status) == 0) {
    peer.uid = status.st_uid;
    peer.gid = status.st_gid;
  }
  readCgroup(peer);
  return peer;
}

}  // namespace weightline
