// A listening Unix socket and its file.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/descriptor.h"

namespace weightline {

class SocketFile {
 public:
  // Listens on `path`, mode 0666, replacing an old socket file. `type`: SOCK_STREAM or SOCK_SEQPACKET; the descriptor does
  // not block and is closed on exec. Throws InvalidArgument for a path that does not fit, AlreadyExists when another kind
  // of file is there.
  SocketFile(std::string path, int type, int backlog);
  // Unlinks the file, unless a successor has put its own there.
  ~SocketFile();
  SocketFile(const SocketFile&) = delete;
  SocketFile& operator=(const SocketFile&) = delete;

  int get() const { return listener_.get(); }

 private:
  const std::string path_;
  Descriptor listener_;
  ino_t inode_ = 0;
};

}  // namespace weightline
