#include "agent/process_watcher.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/fault.h"

namespace weightline {

namespace {
constexpr uint64_t kWakeId = 0;
}

ProcessWatcher::ProcessWatcher(std::function<void(uint64_t)> onEnd)
    : onEnd_(std::move(onEnd)), epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  epoll_event event{EPOLLIN, {.u64 = kWakeId}};
  if (!epoll_.valid() || !wake_.valid() || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    throw systemFault(errno, "starting to watch processes");
  }
  thread_ = std::thread([this] { run(); });
}

ProcessWatcher::~ProcessWatcher() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ::eventfd_write(wake_.get(), 1);
  thread_.join();
}

uint64_t ProcessWatcher::add(int pidfd) {
  Descriptor copy(::fcntl(pidfd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) throw systemFault(errno, "watching a process");
  std::lock_guard lock(mutex_);
  const uint64_t id = nextId_++;
  epoll_event event{EPOLLIN, {.u64 = id}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, copy.get(), &event) != 0) throw systemFault(errno, "watching a process");
  watches_.emplace(id, std::move(copy));
  return id;
}

void ProcessWatcher::remove(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto watch = watches_.find(id);
  if (watch != watches_.end()) forget(watch);
}

// Closing is not enough to leave epoll: the pidfd that this one is a copy of keeps the entry, and the number may come again.
void ProcessWatcher::forget(std::map<uint64_t, Descriptor>::iterator watch) {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, watch->second.get(), nullptr);
  watches_.erase(watch);
}

void ProcessWatcher::run() {
  std::array<epoll_event, 64> events{};
  while (true) {
    const int ready = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), -1);
    std::lock_guard lock(mutex_);
    if (stop_) return;
    for (int i = 0; i < ready; i++) {
      const uint64_t id = events[static_cast<size_t>(i)].data.u64;
      const auto watch = watches_.find(id);
      if (watch == watches_.end()) continue;
      onEnd_(id);
      forget(watch);
    }
  }
}

}  // namespace weightline
