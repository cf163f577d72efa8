// What brings a holding's missing chunks: the one interface of all transports.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "base/cancel.h"
#include "store/holding.h"
#include "transport/run_cursor.h"

namespace weightline {

// Counters of one fill; written by its threads, read by the reporter.
struct FillCounters {
  std::atomic<uint64_t> networkBytes{0}, readBytes{0}, verifiedChunks{0}, refusedChunks{0};
  // Nanoseconds, summed over threads (WaitTimes of native.ts).
  std::atomic<uint64_t> parentNs{0}, wireNs{0}, verifyNs{0}, storeNs{0};
};

// What a fill's threads share. Lives as long as the fill.
struct FillContext {
  Holding& holding;
  RunCursor& cursor;
  FillCounters& counters;
  Cancel& cancel;
};

// A way to bring chunks: files on disk (DiskSource), a peer's mover over TCP (StreamSource). fill() returns when the
// cursor is empty and every chunk that it gave out is in the holding, and throws otherwise. One call per source.
class Source {
 public:
  virtual ~Source() = default;
  virtual void fill(FillContext& context) = 0;
};

// Runs `body(i)` on `count` threads, waits for all, and throws the first fault; the others are cancelled by then.
void runThreads(unsigned count, Cancel& cancel, const std::function<void(unsigned)>& body);

}  // namespace weightline
