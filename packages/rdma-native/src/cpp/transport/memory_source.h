// Memory that a pod gave as the source of one segment: the origin's way of an offer.
#pragma once

#include <utility>
#include <vector>

#include "base/descriptor.h"
#include "transport/reading_source.h"

namespace weightline {

// Bytes from `begin` to `end - 1` of a segment that belong to no item.
struct Gap {
  uint64_t begin = 0, end = 0;
};

// The gaps of a segment, in order. The layout says that they are zero.
std::vector<Gap> gapsOf(const Layout& layout, uint32_t segment);

// Reads a sealed memfd with pread. Its size was proved and cannot change any more; bytes in the gaps that are not zero end
// the fill, since the same tensors must give the same object.
class MemorySource : public ReadingSource {
 public:
  MemorySource(Descriptor memory, uint32_t segment, std::vector<Gap> gaps, unsigned threads)
      : ReadingSource(threads), memory_(std::move(memory)), segment_(segment), gaps_(std::move(gaps)) {}
  void fill(FillContext& context) override { readAll(context); }

 private:
  void read(uint32_t segment, std::span<uint8_t> into, uint64_t offset) override;
  void checkGaps(std::span<const uint8_t> bytes, uint64_t offset) const;

  const Descriptor memory_;
  const uint32_t segment_;
  const std::vector<Gap> gaps_;
};

}  // namespace weightline
