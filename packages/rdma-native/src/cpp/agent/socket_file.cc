#include "agent/socket_file.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/fault.h"

namespace weightline {

SocketFile::SocketFile(std::string path, int type, int backlog)
    : path_(std::move(path)), listener_(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
  if (!listener_.valid()) throw systemFault(errno, "making the socket " + path_).field("--socket").value(path_);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path_.empty() || path_.size() >= sizeof(address.sun_path)) {
    throw Fault(Code::kInvalidArgument, "the socket path " + path_ + " has " + std::to_string(path_.size()) + " bytes; 1 to 107 fit").field("--socket").value(path_).limit("107");
  }
  std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode)) {
      throw Fault(Code::kAlreadyExists, path_ + " is there and is no socket").field("--socket").value(path_).wayOut("remove it, or give another --socket");
    }
    ::unlink(path_.c_str());
  }
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || ::chmod(path_.c_str(), 0666) != 0 ||
      ::listen(listener_.get(), backlog) != 0 || ::lstat(path_.c_str(), &status) != 0) {
    throw systemFault(errno, "listening on " + path_).field("--socket").value(path_);
  }
  inode_ = status.st_ino;
}

SocketFile::~SocketFile() {
  struct stat status {};
  if (inode_ != 0 && ::lstat(path_.c_str(), &status) == 0 && status.st_ino == inode_) ::unlink(path_.c_str());
}

}  // namespace weightline
