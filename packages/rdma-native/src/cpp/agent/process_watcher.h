// Tells when processes end.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "base/descriptor.h"

namespace weightline {

// One thread that waits on pidfds. `onEnd` runs on that thread, at most once for each id, and not after the destructor has
// returned; a call that has begun when remove() is called may still come.
class ProcessWatcher {
 public:
  explicit ProcessWatcher(std::function<void(uint64_t id)> onEnd);
  ~ProcessWatcher();
  // `pidfd` is copied; a process may be watched several times. Returns an id for remove() and `onEnd`.
  uint64_t add(int pidfd);
  void remove(uint64_t id);

 private:
  void forget(std::map<uint64_t, Descriptor>::iterator watch);
  void run();

  const std::function<void(uint64_t)> onEnd_;
  Descriptor epoll_, wake_;
  std::mutex mutex_;
  std::map<uint64_t, Descriptor> watches_;
  uint64_t nextId_ = 1;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weightline
