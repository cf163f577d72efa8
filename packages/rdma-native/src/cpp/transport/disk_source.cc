#include "transport/disk_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace weightline {

namespace {

// Network file systems lose their handle when a server fails over; a few reopenings are enough to know better.
constexpr int kStaleRetries = 3;

Fault changed(const SourceFile& file, const std::string& how) {
  return Fault(Code::kRefused, file.source + " changed while it was loaded: " + how)
      .field(file.source).wayOut("load it again when nothing writes to it");
}

}  // namespace

void DiskSource::fill(FillContext& context) {
  if (files_.size() != context.holding.geometry().segmentCount()) {
    throw Fault(Code::kInvalidArgument, "a load needs one file for each of " + std::to_string(context.holding.geometry().segmentCount()) + " segments, not " + std::to_string(files_.size())).field("files");
  }
  open_ = std::vector<Open>(files_.size());
  readAll(context);
  for (uint32_t i = 0; i < files_.size(); i++) checkUnchanged(i, descriptorOf(i));
}

int DiskSource::descriptorOf(uint32_t segment) {
  std::lock_guard lock(open_[segment].mutex);
  if (open_[segment].descriptor.valid()) return open_[segment].descriptor.get();
  const SourceFile& file = files_[segment];
  Descriptor opened(::open(file.source.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!opened.valid()) {
    if (errno == ENOENT) throw changed(file, "it is gone");
    throw systemFault(errno, "opening " + file.source).field(file.source);
  }
  ::posix_fadvise(opened.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  checkUnchanged(segment, opened.get());
  open_[segment].descriptor = std::move(opened);
  return open_[segment].descriptor.get();
}

// A stale handle: the same path again, which must still be the same file.
int DiskSource::reopen(uint32_t segment) {
  {
    std::lock_guard lock(open_[segment].mutex);
    // Another thread may be reading by the old number: keep it open, under a new file.
    const SourceFile& file = files_[segment];
    Descriptor again(::open(file.source.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!again.valid()) throw changed(file, std::string("it cannot be opened again: ") + std::strerror(errno));
    checkUnchanged(segment, again.get());
    if (::dup3(again.get(), open_[segment].descriptor.get(), O_CLOEXEC) < 0) throw systemFault(errno, "opening " + file.source + " again");
  }
  return descriptorOf(segment);
}

void DiskSource::read(uint32_t segment, std::span<uint8_t> into, uint64_t offset) {
  const SourceFile& file = files_[segment];
  int descriptor = descriptorOf(segment);
  size_t done = 0;
  int stale = 0;
  while (done < into.size()) {
    const ssize_t n = ::pread(descriptor, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    const std::string where = std::to_string(offset + done);
    if (n == 0) {
      throw changed(file, "it ends at offset " + where + ", " + std::to_string(file.bytes - offset - done) + " of " + std::to_string(file.bytes) + " bytes are missing")
          .value(where).limit(std::to_string(file.bytes));
    }
    if (errno == EINTR) continue;
    if (errno == ESTALE && stale++ < kStaleRetries) {
      descriptor = reopen(segment);
      continue;
    }
    const int error = errno;
    throw Fault(Code::kUnavailable, "reading " + file.source + " at offset " + where + " failed: " + std::strerror(error) + " (errno " + std::to_string(error) + ")")
        .field(file.source).value(where).wayOut("the storage answers with an error; load again when it is well");
  }
}

void DiskSource::checkUnchanged(uint32_t segment, int descriptor) const {
  const SourceFile& file = files_[segment];
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) throw systemFault(errno, "looking at " + file.source);
  const int64_t mtimeNs = static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
  if (static_cast<uint64_t>(status.st_size) != file.bytes) {
    throw changed(file, "it has " + std::to_string(status.st_size) + " bytes and had " + std::to_string(file.bytes))
        .value(std::to_string(status.st_size)).limit(std::to_string(file.bytes));
  }
  if (status.st_ino != file.inode || status.st_dev != file.device) throw changed(file, "another file has its name now");
  if (mtimeNs != file.mtimeNs) throw changed(file, "it was written to");
}

}  // namespace weightline
