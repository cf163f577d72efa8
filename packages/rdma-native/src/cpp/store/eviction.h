// Taking a holding's memory back.
#pragma once

#include <cstdint>
#include <string>

#include "base/cancel.h"

namespace weightline {

// True when nobody, ourselves included, has a file of the holding open or mapped (native.md, 6: F_SETLEASE says so).
// The process must ignore SIGIO. `who` names the first file in use.
bool holdingIsFree(const std::string& store, const std::string& id, std::string& who);

// Deletes a holding's folder, record last, so that a crash in the middle is found again. Returns the bytes of memory that
// the segments took. A folder that is gone already counts as deleted.
uint64_t deleteHolding(const std::string& store, const std::string& id);

}  // namespace weightline
