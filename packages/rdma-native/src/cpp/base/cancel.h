// A wish to stop that long work looks at.
#pragma once

#include <atomic>

#include "base/fault.h"

namespace weightline {

// Set by one thread, read by others. Work looks at it at least every 50 ms.
class Cancel {
 public:
  void request() { requested_.store(true, std::memory_order_relaxed); }
  bool requested() const { return requested_.load(std::memory_order_relaxed); }
  void check() const {
    if (requested()) throw Fault(Code::kCancelled, "the order was cancelled");
  }

 private:
  std::atomic<bool> requested_{false};
};

}  // namespace weightline
