// Who was refused so often of late that it waits.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <unordered_map>

namespace weightline {

// Refusals of one process that are answered at once after it was quiet, and the time between two beyond.
inline constexpr double kRefusalsAtOnce = 32;
inline constexpr std::chrono::milliseconds kRefusalInterval{20};

// Counts refusals by process: one that is refused again and again is looked at once in an interval, so that it has little
// of the thread that serves all. For one thread.
class RefusalGauge {
 public:
  using Clock = std::chrono::steady_clock;

  // So many refusals are answered at once.
  explicit RefusalGauge(double atOnce = kRefusalsAtOnce) : atOnce_(atOnce) {}

  void refused(pid_t pid);
  // True while the process waits for its next look.
  bool holds(pid_t pid) const;

 private:
  struct Refusals {
    double count = 0;  // that are not made up for by time, as of `at`
    Clock::time_point at;
  };
  static double countOf(const Refusals& refusals);
  const double atOnce_;
  std::unordered_map<pid_t, Refusals> refusals_;
};

}  // namespace weightline
