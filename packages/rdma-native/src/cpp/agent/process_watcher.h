// Tells when processes end.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "base/descriptor.h"

namespace weightline {

// One thread that waits on pidfds. Callbacks run on that thread, each at most once, and none after remove() or the
// destructor has returned, unless it is the callback that calls.
class ProcessWatcher {
 public:
  ProcessWatcher();
  ~ProcessWatcher();
  // `pidfd` is copied. Returns an id for remove().
  uint64_t add(int pidfd, std::function<void()> onEnd);
  void remove(uint64_t id);

 private:
  struct Watch {
    Descriptor pidfd;
    std::function<void()> onEnd;
  };
  void run();

  Descriptor epoll_, wake_;
  std::mutex mutex_;
  std::map<uint64_t, Watch> watches_;
  uint64_t nextId_ = 1;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weightline
