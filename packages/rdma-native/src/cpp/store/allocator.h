// Memory for a holding that is being filled, taken from tmpfs ahead of the writers.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fault.h"
#include "store/geometry.h"

namespace weightline {

// How far the allocator runs ahead of the furthest writer (objects.md, "The store").
inline constexpr uint64_t kAllocationWindowBytes = 256ull << 20;
// One fallocate call: short enough that a writer on a slow link never waits long for it.
inline constexpr uint64_t kAllocationStepBytes = 8ull << 20;

// Takes pages with fallocate on a thread of its own, so that a full tmpfs is ENOSPC and never SIGBUS. Writers go through
// the segments `first` to `end - 1` in order; the thread allocates in that order too. `descriptors` has one for each of
// them; they stay the caller's and must outlive it.
class Allocator {
 public:
  Allocator(const Geometry& geometry, size_t first, size_t end, std::vector<int> descriptors);
  ~Allocator();  // joins the thread
  // Waits until everything before position `linearEnd` is allocated. Throws ResourceExhausted when tmpfs is full.
  void ensure(uint64_t linearEnd);
  // Seconds that writers waited here.
  double waitedSeconds() const;

 private:
  void run();
  uint64_t step(uint64_t from);

  const Geometry& geometry_;
  const size_t firstSegment_;
  const uint64_t end_;  // position behind the last segment
  const std::vector<int> descriptors_;
  mutable std::mutex mutex_;
  std::condition_variable wanted_, advanced_;
  uint64_t allocated_, target_;
  double waitedSeconds_ = 0;
  bool stop_ = false;
  std::unique_ptr<Fault> fault_;
  std::thread thread_;
};

}  // namespace weightline
