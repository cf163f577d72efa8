// The few file operations that the store is made of. All paths stay below a folder's descriptor; no link is followed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"

namespace weightline::files {

// Opens a folder. Throws NotFound and the like, naming `path`.
Descriptor openFolder(const std::string& path);
// Opens `path` below `folder` without following links or leaving it. `flags` as in open(2); O_CLOEXEC is added.
Descriptor openBelow(int folder, const std::string& path, int flags, unsigned mode = 0600);
bool existsBelow(int folder, const std::string& path);
// Makes the folders above `path`, which is relative.
void makeParents(int folder, const std::string& path);

// Reads a whole file of at most `limit` bytes.
std::vector<uint8_t> readWhole(int folder, const std::string& path, uint64_t limit);
// Writes `path` so that it is there whole or not at all: a temporary file beside it, then a rename.
void writeWhole(int folder, const std::string& path, std::span<const uint8_t> bytes);

// pread and pwrite of all bytes, in pieces that the kernel takes (at most 0x7ffff000 each).
// readFully returns fewer bytes than asked only at the end of the file; both throw a systemFault naming `what`.
size_t readFully(int fd, uint8_t* data, size_t bytes, uint64_t offset, const std::string& what);
void writeFully(int fd, const uint8_t* data, size_t bytes, uint64_t offset, const std::string& what);

uint64_t sizeOf(int fd);
// Bytes of memory that a file takes.
uint64_t allocatedBytes(int fd);

// FS_IMMUTABLE_FL. `setImmutable` returns false where the kernel or the rights do not allow it (before 6.0, or without
// CAP_LINUX_IMMUTABLE); `isImmutable` is false there too.
bool setImmutable(int fd, bool immutable);
bool isImmutable(int fd);

// Regular files below `folder`, relative, in no order. Folders come after what is in them when `folders` is set.
std::vector<std::string> listBelow(int folder, bool folders = false);

// A read-only or shared-writable mapping that unmaps itself.
class Mapping {
 public:
  Mapping() = default;
  Mapping(int fd, uint64_t bytes, bool writable);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  bool valid() const { return data_ != nullptr; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace weightline::files
