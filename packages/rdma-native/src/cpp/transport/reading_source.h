// What the sources share that read a holding's bytes on this machine: the loop that reads, digests, writes and marks.
#pragma once

#include <cstdint>
#include <span>

#include "transport/source.h"

namespace weightline {

class ReadingSource : public Source {
 public:
  explicit ReadingSource(unsigned threads) : threads_(threads) {}

 protected:
  // Empties the cursor on `threads` threads.
  void readAll(FillContext& context);
  // Reads all of `into` from `offset` of the segment on, or throws. Any thread.
  virtual void read(uint32_t segment, std::span<uint8_t> into, uint64_t offset) = 0;

 private:
  void work(FillContext& context);

  const unsigned threads_;
};

}  // namespace weightline
