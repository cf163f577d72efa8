// Closes descriptors of strangers: closing a file may wait for the process behind its file system (FUSE), for ever.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "base/descriptor.h"

namespace weightline {

// Closes on a thread of its own, which nobody waits for. A close that hangs would keep the whole process from ending, kill -9
// included: after kCloseTime its FUSE connection is aborted, whose server does not answer anybody anyway.
class Closer {
 public:
  // Descriptors that may wait; more means that closing hangs.
  static constexpr size_t kMaxWaiting = 64;
  static constexpr std::chrono::milliseconds kCloseTime{2000};

  Closer();
  ~Closer();
  Closer(const Closer&) = delete;
  Closer& operator=(const Closer&) = delete;

  // Any thread.
  void close(Descriptor descriptor);
  bool full() const;

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Descriptor> waiting;
    uint64_t closed = 0;     // count
    bool closing = false;    // the first of `waiting` is being closed
    uint32_t minor = 0;      // of its device
    bool stop = false;
  };
  static void run(const std::shared_ptr<State>& state);
  static void watch(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;
};

}  // namespace weightline
