#include "store/allocator.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace weightline {

Allocator::Allocator(const Geometry& geometry, size_t first, size_t end, std::vector<int> descriptors)
    : geometry_(geometry), firstSegment_(first), end_(geometry.segmentStart(end)), descriptors_(std::move(descriptors)),
      allocated_(geometry.segmentStart(first)), target_(allocated_), thread_([this] { run(); }) {}

Allocator::~Allocator() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wanted_.notify_all();
  thread_.join();
}

void Allocator::ensure(uint64_t linearEnd) {
  std::unique_lock lock(mutex_);
  const uint64_t target = std::min(end_, linearEnd + kAllocationWindowBytes);
  // Waking the thread for every chunk would cost more than it gives: half a window is early enough.
  if (target > target_ && (linearEnd > allocated_ || target - target_ >= kAllocationWindowBytes / 2 || target == end_)) {
    target_ = target;
    wanted_.notify_one();
  }
  if (allocated_ < linearEnd && !fault_) {
    const auto start = std::chrono::steady_clock::now();
    advanced_.wait(lock, [&] { return allocated_ >= linearEnd || fault_; });
    waitedSeconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  if (allocated_ < linearEnd) throw *fault_;
}

double Allocator::waitedSeconds() const {
  std::lock_guard lock(mutex_);
  return waitedSeconds_;
}

// Allocates from position `from` to the end of its step or segment; returns where the next step begins.
uint64_t Allocator::step(uint64_t from) {
  size_t segment = firstSegment_;
  while (geometry_.segmentStart(segment + 1) <= from) segment++;
  const uint64_t offset = from - geometry_.segmentStart(segment);
  const uint64_t bytes = std::min(kAllocationStepBytes, geometry_.segment(static_cast<uint32_t>(segment)).bytes - offset);
  while (::fallocate(descriptors_[segment - firstSegment_], 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    throw systemFault(errno, "taking " + std::to_string(bytes) + " bytes of memory for " + geometry_.segment(static_cast<uint32_t>(segment)).path)
        .field("--store").wayOut("evict a model, give the tmpfs a larger size=, or lower --memory-limit below the tmpfs's size");
  }
  return from + bytes;
}

void Allocator::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wanted_.wait(lock, [&] { return stop_ || allocated_ < target_; });
    if (stop_) return;
    const uint64_t from = allocated_;
    lock.unlock();
    uint64_t next = from;
    std::unique_ptr<Fault> fault;
    try {
      next = step(from);
    } catch (const Fault& e) {
      fault = std::make_unique<Fault>(e);
    }
    lock.lock();
    allocated_ = next;
    advanced_.notify_all();
    if (fault) {
      fault_ = std::move(fault);
      return;
    }
  }
}

}  // namespace weightline
