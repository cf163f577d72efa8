#include "agent/process.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "agent/cgroup.h"
#include "base/fault.h"
#include "base/ready.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // kernel 6.5, include/uapi/asm-generic/socket.h
#endif

namespace weightline {

namespace {

Fault ended(pid_t pid) { return Fault(Code::kRefused, "the calling process " + std::to_string(pid) + " has ended").field("pid").value(std::to_string(pid)); }

Descriptor openPidfd(pid_t pid) { return Descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

// Effective uid and gid. (The owner of /proc/PID is root for a process that may not be dumped.)
void readCredentials(PeerProcess& peer) {
  std::ifstream file("/proc/" + std::to_string(peer.process->pid) + "/status");
  uint32_t real = 0;
  for (std::string word; file >> word;) {
    if (word == "Uid:") file >> real >> peer.uid;
    if (word == "Gid:") {
      file >> real >> peer.gid;
      return;
    }
  }
}

// True when the other end is closed: then the process that connected may be another by now.
bool hungUp(int socket) { return readyNow(socket, POLLRDHUP) != 0; }

// Before SO_PEERPIDFD: the number may have gone to another process since the call connected. Believed when the
// connection still stands and the process has the credentials that connected.
Descriptor openPeer(int socket, const ucred& credentials) {
  PeerProcess found;
  found.process = std::make_shared<Process>();
  found.process->pid = credentials.pid;
  found.process->pidfd = openPidfd(credentials.pid);
  if (!found.process->pidfd.valid()) throw ended(credentials.pid);
  readCredentials(found);
  if (found.uid != credentials.uid || found.gid != credentials.gid || hungUp(socket) || !found.process->alive()) throw ended(credentials.pid);
  return std::move(found.process->pidfd);
}

// Reads the cgroup. False when the process is not alive afterwards: then its number may have gone to another meanwhile.
bool readCgroup(PeerProcess& peer) {
  peer.cgroup = cgroupOf(peer.process->pid);
  return peer.process->alive();
}

}  // namespace

bool Process::alive() const { return pidfd.valid() && readyNow(pidfd.get(), POLLIN) == 0; }

pid_t connectedPid(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length);
  return credentials.pid;
}

PeerProcess peerOf(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) throw systemFault(errno, "asking who is at the socket");
  if (credentials.pid <= 0) {
    throw Fault(Code::kRefused, "the calling process has no number in this process's pid namespace").field("pid").value(std::to_string(credentials.pid)).wayOut("run the agent in the host's pid namespace (hostPID)");
  }
  PeerProcess peer;
  peer.process = std::make_shared<Process>();
  peer.process->pid = credentials.pid;
  peer.uid = credentials.uid;
  peer.gid = credentials.gid;
  int pidfd = -1;
  length = sizeof(pidfd);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0) {
    peer.process->pidfd = Descriptor(pidfd);
    peer.fromSocket = true;
  } else if (errno == ENOPROTOOPT) {
    peer.process->pidfd = openPeer(socket, credentials);
  } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
    throw systemFault(errno, "opening the calling process");
  } else {
    throw ended(credentials.pid);  // EINVAL, ESRCH or ENODATA, by the kernel's version
  }
  if (!readCgroup(peer)) throw ended(credentials.pid);
  return peer;
}

PeerProcess processOf(pid_t pid) {
  PeerProcess peer;
  peer.process = std::make_shared<Process>();
  peer.process->pid = pid;
  peer.process->pidfd = openPidfd(pid);
  if (!peer.process->pidfd.valid() && errno != ESRCH && errno != EINVAL) throw systemFault(errno, "opening process " + std::to_string(pid));
  if (peer.process->pidfd.valid()) readCredentials(peer);
  if (!readCgroup(peer)) throw Fault(Code::kNotFound, "there is no process " + std::to_string(pid)).field("pid").value(std::to_string(pid));
  return peer;
}

}  // namespace weightline
