// The layout format of the store (WLLAYOUT, version 1): a function of the input alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "digest/digest.h"

namespace weightline {

inline constexpr uint32_t kLayoutVersion = 1;
inline constexpr uint64_t kMaxItems = 2'000'000;
inline constexpr size_t kMaxNameBytes = 512;
inline constexpr size_t kMaxRank = 16;
inline constexpr size_t kMaxSegments = 4096;
inline constexpr uint64_t kMinChunkBytes = 64 * 1024;
inline constexpr uint64_t kMaxChunkBytes = 1024 * 1024;
// A layout file above this is refused before it is read: 2,000,000 items with names of 512 bytes and 16 dims.
inline constexpr uint64_t kMaxLayoutBytes = 2'000'000ull * (512 + 16 * 8 + 40) + (64ull << 20);

// The largest power of two not above totalBytes/16384, kept within kMinChunkBytes and kMaxChunkBytes.
uint64_t chunkBytesFor(uint64_t totalBytes);

struct Segment {
  uint64_t bytes = 0;
  std::string path;  // of kind `files`: UTF-8, `/`; empty for `tensors`
};

struct Item {
  std::string name;  // UTF-8
  std::string dtype;
  std::vector<uint64_t> shape;
  uint32_t segment = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint32_t alias = 0;  // index of the item whose bytes these are; its own otherwise
};

// A layout in memory. `items` are sorted by name bytes; dtypes are sorted when written.
struct Layout {
  std::string kind = "files";
  Algorithm algorithm = Algorithm::kXxh3;
  uint64_t chunkBytes = kMinChunkBytes;
  std::vector<Segment> segments;
  std::vector<Item> items;

  uint64_t totalBytes() const;
};

// Encodes; sorts items by name bytes and segments must be final. Throws InvalidArgument on a limit.
std::vector<uint8_t> encodeLayout(const Layout& layout);

// Decodes and checks everything (magic, version, limits, sorted unique names, items inside their segment by
// overflow-safe arithmetic, valid UTF-8 paths that stay inside the folder, unique paths, chunk size equal to
// chunkBytesFor). Throws Corrupt naming the column and row.
Layout decodeLayout(std::span<const uint8_t> bytes);

// Only the header: segments, chunk size, algorithm, kind, counts; items stay empty. The same checks for what it reads.
// For the mover, which does not need the columns, but checkLayout below has run over them once when the layout arrived.
Layout decodeLayoutHeader(std::span<const uint8_t> bytes);

// True for a relative path of `/`-separated names without "", ".", "..", NUL, at most 4096 bytes, each name at most 255.
bool safeRelativePath(std::string_view path);

}  // namespace weightline
