#include "store/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "base/fault.h"

namespace weightline::files {

namespace {

// What one read or write call can carry (man 2 read).
constexpr size_t kMaxCallBytes = 0x7ffff000;

void collect(int folder, const std::string& prefix, bool folders, std::vector<std::string>& found) {
  const int copy = ::openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) throw systemFault(errno, "opening a folder of the store");
  std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy), ::closedir);
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat status {};
    if (::fstatat(folder, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (!S_ISDIR(status.st_mode)) {
      found.push_back(prefix + name);
      continue;
    }
    Descriptor inner(::openat(folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    if (!inner.valid()) continue;
    collect(inner.get(), prefix + name + "/", folders, found);
    if (folders) found.push_back(prefix + name);
  }
}

}  // namespace

Descriptor openFolder(const std::string& path) {
  Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) throw systemFault(errno, "opening the folder " + path).field("path").value(path);
  return folder;
}

Descriptor openBelow(int folder, const std::string& path, int flags, unsigned mode) {
  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
  how.mode = (flags & O_CREAT) != 0 ? mode : 0;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const long fd = ::syscall(SYS_openat2, folder, path.c_str(), &how, sizeof(how));
  if (fd < 0) throw systemFault(errno, "opening " + path + " in the store").field("path").value(path);
  return Descriptor(static_cast<int>(fd));
}

bool existsBelow(int folder, const std::string& path) {
  struct stat status {};
  return ::fstatat(folder, path.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
}

void makeParents(int folder, const std::string& path) {
  for (size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string parent = path.substr(0, slash);
    if (::mkdirat(folder, parent.c_str(), 0755) != 0 && errno != EEXIST) {
      throw systemFault(errno, "making the folder " + parent + " in the store");
    }
  }
}

std::vector<uint8_t> readWhole(int folder, const std::string& path, uint64_t limit) {
  const Descriptor file = openBelow(folder, path, O_RDONLY);
  const uint64_t bytes = sizeOf(file.get());
  if (bytes > limit) {
    throw Fault(Code::kCorrupt, path + " has " + std::to_string(bytes) + " bytes; at most " + std::to_string(limit) + " can be right")
        .field(path).value(std::to_string(bytes)).limit(std::to_string(limit));
  }
  std::vector<uint8_t> data(bytes);
  data.resize(readFully(file.get(), data.data(), data.size(), 0, path));
  return data;
}

void writeWhole(int folder, const std::string& path, std::span<const uint8_t> bytes) {
  const std::string temporary = path + ".new";
  {
    const Descriptor file = openBelow(folder, temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    writeFully(file.get(), bytes.data(), bytes.size(), 0, path);
  }
  if (::renameat(folder, temporary.c_str(), folder, path.c_str()) != 0) throw systemFault(errno, "renaming " + temporary);
}

size_t readFully(int fd, uint8_t* data, size_t bytes, uint64_t offset, const std::string& what) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pread(fd, data + done, std::min(bytes - done, kMaxCallBytes), static_cast<off_t>(offset + done));
    if (n == 0) break;
    if (n < 0) {
      if (errno == EINTR) continue;
      throw systemFault(errno, "reading " + what + " at " + std::to_string(offset + done));
    }
    done += static_cast<size_t>(n);
  }
  return done;
}

void writeFully(int fd, const uint8_t* data, size_t bytes, uint64_t offset, const std::string& what) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = ::pwrite(fd, data + done, std::min(bytes - done, kMaxCallBytes), static_cast<off_t>(offset + done));
    if (n < 0) {
      if (errno == EINTR) continue;
      throw systemFault(errno, "writing " + what + " at " + std::to_string(offset + done));
    }
    done += static_cast<size_t>(n);
  }
}

uint64_t sizeOf(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw systemFault(errno, "reading a file's size");
  return static_cast<uint64_t>(status.st_size);
}

uint64_t allocatedBytes(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw systemFault(errno, "reading a file's size");
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

bool setImmutable(int fd, bool immutable) {
  int flags = 0;
  if (::ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) return false;
  const int wanted = immutable ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
  return wanted == flags || ::ioctl(fd, FS_IOC_SETFLAGS, &wanted) == 0;
}

bool isImmutable(int fd) {
  int flags = 0;
  return ::ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_IMMUTABLE_FL) != 0;
}

std::vector<std::string> listBelow(int folder, bool folders) {
  std::vector<std::string> found;
  collect(folder, "", folders, found);
  return found;
}

Mapping::Mapping(int fd, uint64_t bytes, bool writable) : bytes_(bytes) {
  if (bytes == 0) return;
  void* address = ::mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) throw systemFault(errno, "mapping a file of the store");
  data_ = static_cast<uint8_t*>(address);
}

Mapping::Mapping(Mapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

}  // namespace weightline::files
