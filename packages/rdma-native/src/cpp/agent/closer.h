// Closes descriptors of strangers: closing a file may wait for the process behind its file system (FUSE), for ever.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "base/descriptor.h"

namespace weightline {

// Closes on a thread of its own, which nobody waits for: when a close hangs, that thread and what follows it hang, and
// the process goes on. Any thread may use it.
class Closer {
 public:
  // Descriptors that may wait; more means that closing hangs.
  static constexpr size_t kMaxWaiting = 64;

  Closer();
  ~Closer();
  Closer(const Closer&) = delete;
  Closer& operator=(const Closer&) = delete;

  void close(Descriptor descriptor);
  bool full() const;

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Descriptor> waiting;
    bool stop = false;
  };
  static void run(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;
};

}  // namespace weightline
