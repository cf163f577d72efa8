// Memory that a pod gives: hostile until it is sealed (native.md, rule 6).
#pragma once

#include <fcntl.h>

#include <cstdint>

namespace weightline {

// What a memfd has before anybody reads it: its bytes and size cannot change any more.
inline constexpr int kMemorySeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

// Accepts a memfd, open for reading and writing, on tmpfs, of exactly `bytes` bytes that are all there, and seals it. Throws
// Refused saying what it is instead. May wait some 150 ms for pinned pages; never waits for another process: what may be a
// FUSE file is refused before it is asked anything.
void sealMemory(int fd, uint64_t bytes);

}  // namespace weightline
