#include "coverage.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace weightline::fuzz {

namespace {

constexpr size_t kEdges = 1 << 16;
std::array<uint8_t, kEdges> hits, seen;
thread_local uintptr_t previous;

}  // namespace

void clearCoverage() {
  hits.fill(0);
  previous = 0;
}

bool coveredNew() {
  bool fresh = false;
  for (size_t at = 0; at < kEdges; at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, hits.data() + at, sizeof(word));
    if (word == 0) continue;
    for (size_t i = at; i < at + sizeof(word); i++) {
      // Counts by powers of two: a loop that runs once more is nothing new, twice as often is.
      const auto bucket = static_cast<uint8_t>(hits[i] == 0 ? 0 : 1u << (std::bit_width(hits[i]) - 1));
      fresh = fresh || (bucket & ~seen[i]) != 0;
      seen[i] = static_cast<uint8_t>(seen[i] | bucket);
    }
  }
  return fresh;
}

size_t coveredEdges() {
  size_t count = 0;
  for (const uint8_t edge : seen) count += edge != 0 ? 1 : 0;
  return count;
}

}  // namespace weightline::fuzz

// Called by every instrumented block.
extern "C" __attribute__((no_sanitize_address, no_sanitize_undefined)) void __sanitizer_cov_trace_pc() {
  using namespace weightline::fuzz;
  // Relative to this function, so that where the program was loaded does not matter.
  const uintptr_t place = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) - reinterpret_cast<uintptr_t>(&__sanitizer_cov_trace_pc);
  uint8_t& count = hits[((place * 0x9e3779b97f4a7c15ull >> 40) ^ previous) % kEdges];
  if (count != 255) count++;
  previous = (place * 0x9e3779b97f4a7c15ull >> 41) % kEdges;
}
