// Where each chunk of a layout lies.
#pragma once

#include <cstdint>
#include <vector>

#include "layout/layout.h"

namespace weightline {

// Chunks are numbered through the segments; each segment is cut from its start, its last chunk is short, an empty one
// has none (objects.md, "Chunk"). Immutable, so any thread may use it.
class Geometry {
 public:
  struct Place {
    uint32_t segment;
    uint64_t offset;  // within the segment
    uint32_t bytes;
  };

  explicit Geometry(const Layout& layout);

  uint64_t chunkCount() const { return firstChunk_.back(); }
  uint64_t totalBytes() const { return start_.back(); }
  uint64_t chunkBytes() const { return chunkBytes_; }
  size_t segmentCount() const { return segments_.size(); }
  const Segment& segment(uint32_t index) const { return segments_[index]; }
  // Number of a segment's first chunk; `segmentCount()` gives the count of chunks.
  uint64_t firstChunk(size_t segment) const { return firstChunk_[segment]; }
  // `chunk` must be below chunkCount().
  Place place(uint64_t chunk) const;
  // Bytes of all segments before the end of `chunk`: a position in the order in which chunks are filled.
  uint64_t linearEnd(uint64_t chunk) const;
  // Position of a segment's first byte in that order; `segmentCount()` gives the total.
  uint64_t segmentStart(size_t segment) const { return start_[segment]; }

 private:
  uint64_t chunkBytes_;
  std::vector<Segment> segments_;
  std::vector<uint64_t> firstChunk_;  // one more than segments: the last is the count of chunks
  std::vector<uint64_t> start_;       // likewise in bytes
};

}  // namespace weightline
