// Gives out the missing chunks of a holding, in order, to the threads that fill it.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

#include "store/holding.h"

namespace weightline {

// A run of consecutive chunks of one segment; count 0 means that nothing is left.
struct Run {
  uint64_t first = 0;
  uint32_t count = 0;
};

class RunCursor {
 public:
  // Over all chunks, or those of one segment.
  explicit RunCursor(const Holding& holding, std::optional<uint32_t> segment = std::nullopt)
      : holding_(holding), next_(segment ? holding.geometry().firstChunk(*segment) : 0),
        end_(holding.geometry().firstChunk(segment ? *segment + 1 : holding.geometry().segmentCount())) {}

  // The next run of missing chunks, at most `maxCount` long. Any thread.
  Run next(uint32_t maxCount) {
    std::lock_guard lock(mutex_);
    const Geometry& geometry = holding_.geometry();
    while (next_ < end_ && holding_.verified(next_)) next_++;
    if (next_ >= end_) return {};
    Run run{next_, 0};
    const uint32_t segment = geometry.place(next_).segment;
    while (run.count < maxCount && next_ < end_ && !holding_.verified(next_) &&
           (run.count == 0 || geometry.place(next_).segment == segment)) {
      run.count++;
      next_++;
    }
    return run;
  }

 private:
  const Holding& holding_;
  std::mutex mutex_;
  uint64_t next_;
  const uint64_t end_;
};

}  // namespace weightline
