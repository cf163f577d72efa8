// Serves a flood on the core that it comes from.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <chrono>
#include <unordered_map>

namespace weightline {

// Connections of one process in a window that are a flood: 5,000 a second.
inline constexpr int kFloodConnections = 500;
inline constexpr std::chrono::milliseconds kFloodWindow{100};

// Moves its thread to the core of a process that floods it, while that lasts: what is done for that process then takes the
// core from that process, and not from those who wait for an answer. Nothing happens where the thread may not move, and it
// leaves a core on which it is kept waiting itself. For one thread, which makes it.
class CoreFollower {
 public:
  // Names the thread, and raises its priority where that is allowed (CAP_SYS_NICE): on a core that is kept busy it would not
  // be in time for the others.
  explicit CoreFollower(const char* threadName);
  // The process connected.
  void connected(pid_t pid);

 private:
  using Clock = std::chrono::steady_clock;
  // At a window's end: who was most frequent.
  void decide(Clock::time_point now);
  bool follow(pid_t pid);
  void goBack();
  // Whether the thread stood ready for more than a part of the time since the last look, and was not let on the core.
  bool keptWaiting(Clock::time_point now);

  cpu_set_t allowed_{};  // what the thread had at the start
  std::unordered_map<pid_t, int> counts_;
  Clock::time_point windowStart_ = Clock::now();
  bool follows_ = false;
  std::chrono::nanoseconds waited_{};  // for a core, as of the last look
  Clock::time_point staysUntil_{};     // where it is
};

}  // namespace weightline
