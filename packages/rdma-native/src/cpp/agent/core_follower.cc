#include "agent/core_follower.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace weightline {

namespace {

constexpr int kNice = -10;
// Waiting for more of the time than this, a part in so many, the thread leaves the core, and follows nobody for a time.
constexpr int kWaitingPart = 4;
constexpr std::chrono::seconds kStay{5};
// Of /proc/PID/stat, counted from the one after the name, which may hold anything: the core that the process ran on last
// (proc_pid_stat(5), field 39).
constexpr int kProcessorField = 36;

// -1 when the process is gone.
int coreOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  size_t at = line.rfind(')');
  for (int field = 0; field <= kProcessorField && at != std::string::npos; field++) at = line.find(' ', at + 1);
  return at == std::string::npos ? -1 : std::atoi(line.c_str() + at);
}

// Time that this thread was ready to run and did not (the second number of /proc/PID/schedstat); negative where the kernel
// does not tell.
std::chrono::nanoseconds waitedForCore() {
  std::ifstream file("/proc/thread-self/schedstat");
  int64_t ran = 0, waited = 0;
  return std::chrono::nanoseconds(file >> ran >> waited ? waited : -1);
}

}  // namespace

CoreFollower::CoreFollower(const char* threadName) {
  ::pthread_setname_np(::pthread_self(), threadName);
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNice);
  ::sched_getaffinity(0, sizeof(allowed_), &allowed_);
}

void CoreFollower::connected(pid_t pid) {
  counts_[pid]++;
  const auto now = Clock::now();
  if (now - windowStart_ >= kFloodWindow) decide(now);
}

void CoreFollower::decide(Clock::time_point now) {
  const auto most = std::max_element(counts_.begin(), counts_.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const bool flood = most->second >= kFloodConnections && now - windowStart_ < 2 * kFloodWindow;
  if (follows_ && keptWaiting(now)) staysUntil_ = now + kStay;
  if (!flood || now < staysUntil_ || !follow(most->first)) goBack();
  counts_.clear();
  windowStart_ = now;
}

bool CoreFollower::follow(pid_t pid) {
  const int core = coreOf(pid);
  if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(core, &allowed_)) return false;
  waited_ = waitedForCore();
  if (waited_ < std::chrono::nanoseconds::zero()) return false;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  follows_ = ::sched_setaffinity(0, sizeof(one), &one) == 0 || follows_;
  return follows_;
}

void CoreFollower::goBack() {
  if (follows_) ::sched_setaffinity(0, sizeof(allowed_), &allowed_);
  follows_ = false;
}

bool CoreFollower::keptWaiting(Clock::time_point now) { return (waitedForCore() - waited_) * kWaitingPart > now - windowStart_; }

}  // namespace weightline
