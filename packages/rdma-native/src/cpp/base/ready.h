// What a descriptor is ready for now.
#pragma once

#include <poll.h>

#include <cerrno>

namespace weightline {

// poll(2) of one descriptor without waiting: what it is ready for, of `events` and of what is always told; 0 for nothing.
// A signal that is pending ends even a poll that does not wait, and says nothing of the descriptor: asked again.
inline short readyNow(int descriptor, short events) {
  pollfd entry{descriptor, events, 0};
  int ready = 0;
  do {
    ready = ::poll(&entry, 1, 0);
  } while (ready < 0 && errno == EINTR);
  // One that cannot be asked is as one that ended.
  return ready < 0 ? static_cast<short>(POLLERR) : entry.revents;
}

}  // namespace weightline
