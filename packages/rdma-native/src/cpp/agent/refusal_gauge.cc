#include "agent/refusal_gauge.h"

#include <algorithm>

namespace weightline {

namespace {

constexpr size_t kMaxProcesses = 4096;

}  // namespace

double RefusalGauge::countOf(const Refusals& refusals) {
  return std::max(0.0, refusals.count - std::chrono::duration<double>(Clock::now() - refusals.at) / kRefusalInterval);
}

void RefusalGauge::refused(pid_t pid) {
  if (refusals_.size() >= kMaxProcesses) {
    std::erase_if(refusals_, [](const auto& entry) { return countOf(entry.second) == 0; });
    if (refusals_.size() >= kMaxProcesses) refusals_.clear();
  }
  Refusals& refusals = refusals_[pid];
  refusals = {countOf(refusals) + 1, Clock::now()};
}

bool RefusalGauge::holds(pid_t pid) const {
  const auto found = refusals_.find(pid);
  return found != refusals_.end() && countOf(found->second) > atOnce_;
}

}  // namespace weightline
