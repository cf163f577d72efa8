// XXH3-128 with the vector code of one instruction set; digest.cc chooses when the program starts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weightline::xxh3 {

// Writes the canonical (big-endian) 16 bytes, seed 0.
using OneShot = void (*)(const uint8_t* data, size_t bytes, uint8_t* out);

void baseline(const uint8_t* data, size_t bytes, uint8_t* out);
#if defined(__x86_64__)
void avx2(const uint8_t* data, size_t bytes, uint8_t* out);
#endif

}  // namespace weightline::xxh3
