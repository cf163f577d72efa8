// Files on disk as the source of a holding: the origin's way (`load`).
#pragma once

#include <vector>

#include "base/descriptor.h"
#include "model/scan.h"
#include "transport/reading_source.h"

namespace weightline {

// Reads with pread only: a source file is never mapped. A file that is not the one that was scanned ends the fill.
class DiskSource : public ReadingSource {
 public:
  // `files` has one entry for each segment, in order.
  DiskSource(std::vector<SourceFile> files, unsigned threads) : ReadingSource(threads), files_(std::move(files)) {}
  void fill(FillContext& context) override;

 private:
  struct Open {
    std::mutex mutex;
    Descriptor descriptor;
  };
  int descriptorOf(uint32_t segment);
  int reopen(uint32_t segment);
  void read(uint32_t segment, std::span<uint8_t> into, uint64_t offset) override;
  void checkUnchanged(uint32_t segment, int descriptor) const;

  const std::vector<SourceFile> files_;
  std::vector<Open> open_;
};

}  // namespace weightline
