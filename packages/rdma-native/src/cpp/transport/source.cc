#include "transport/source.h"

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace weightline {

void runThreads(unsigned count, Cancel& cancel, const std::function<void(unsigned)>& body) {
  std::mutex mutex;
  std::exception_ptr first;
  const auto guarded = [&](unsigned index) {
    try {
      body(index);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
      cancel.request();
    }
  };
  std::vector<std::thread> threads;
  try {
    for (unsigned i = 1; i < count; i++) threads.emplace_back(guarded, i);
  } catch (const std::system_error&) {
    // Fewer threads do the same work, only slower.
  }
  guarded(0);
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace weightline
