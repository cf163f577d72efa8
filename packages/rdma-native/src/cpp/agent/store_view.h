// Read-only access to the store, for descriptors that pods get (native.md, rule 6).
#pragma once

#include <node_api.h>

#include <string>

#include "base/descriptor.h"

namespace weightline {

class StoreView {
 public:
  static constexpr const char* kName = "store view";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x02};

  enum class Level { kReadOnlyMount, kDetachedMount, kPlain };

  // `readOnlyMount`: where the same store is mounted read-only, or "". Throws Refused when it is not that.
  StoreView(const std::string& store, const std::string& readOnlyMount);

  Level level() const { return level_; }
  // A read-only descriptor of a regular file below holdings/<id>. No link is followed. Any thread.
  Descriptor open(const std::string& holdingId, const std::string& path) const;

 private:
  Descriptor root_;
  Level level_ = Level::kPlain;
};

}  // namespace weightline
