// Changes inputs: bits, numbers at their limits, words of the format, runs of bytes cut, doubled, moved and spliced.
#pragma once

#include "fuzz.h"

namespace weightline::fuzz {

// A changed copy of `input`. `other` is another input of the same target, from which pieces may come.
Bytes mutate(const Target& target, const Bytes& input, const Bytes& other, Random& random);

}  // namespace weightline::fuzz
