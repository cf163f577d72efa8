#include "transport/source.h"

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace weightline {

void runThreads(unsigned count, Cancel& cancel, const std::function<void(unsigned)>& body) {
  std::mutex mutex;
  std::unique_ptr<Fault> first;
  const auto guarded = [&](unsigned index) {
    std::unique_ptr<Fault> fault;
    try {
      body(index);
      return;
    } catch (const Fault& e) {
      fault = std::make_unique<Fault>(e);
    } catch (const std::exception& e) {
      fault = std::make_unique<Fault>(Code::kInternal, e.what());
    }
    std::lock_guard lock(mutex);
    if (!first) first = std::move(fault);
    cancel.request();
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < count; i++) threads.emplace_back(guarded, i);
  guarded(0);
  for (std::thread& thread : threads) thread.join();
  if (first) throw *first;
}

}  // namespace weightline
