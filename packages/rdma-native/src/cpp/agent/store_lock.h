// The store's exclusive lock: one agent with its mover at a time.
#pragma once

#include <node_api.h>

#include <atomic>
#include <string>

#include "base/descriptor.h"

namespace weightline {

// Holds the flock while any copy of its descriptor is open; the mover inherits one.
struct StoreLock {
  static constexpr const char* kName = "store lock";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x01};
  Descriptor descriptor;
};

// Opens `path` and takes the lock, trying for `waitMs`. Throws InUse naming the processes that hold it, and Cancelled soon
// after `stop` has become true.
StoreLock lockStore(const std::string& path, uint32_t waitMs, const std::atomic<bool>& stop);

}  // namespace weightline
