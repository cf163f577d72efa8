// The list of tensors that a pod offers, and the layout of them.
#pragma once

#include <cstdint>
#include <string>

#include "digest/digest.h"
#include "layout/layout.h"

namespace weightline {

// A list above this is refused before memory is taken for it; 2,000,000 tensors with ordinary names fit.
inline constexpr uint64_t kMaxTensorListBytes = 256ull << 20;
// objects.md, "Segments": each item begins at a multiple of this.
inline constexpr uint64_t kItemAlignmentBytes = 256;
// A new segment begins before this would be passed; a larger item has its own.
inline constexpr uint64_t kSegmentBytes = 1ull << 30;

// Reads a list in the form of a safetensors header without offsets and makes the layout of kind `tensors` of it:
//   {"NAME": {"dtype": "BF16", "shape": [2, 3]}, "ALIAS": {"alias": "NAME"}, ...}
// `bytes` (a whole number) says the size of a tensor whose dtype nobody knows. `descriptor` is open for reading. Throws
// InvalidArgument or Corrupt naming tensor, value and limit.
Layout readTensorList(int descriptor, uint64_t listBytes, Algorithm algorithm);

}  // namespace weightline
