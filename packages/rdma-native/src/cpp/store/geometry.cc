#include "store/geometry.h"

#include <algorithm>

namespace weightline {

Geometry::Geometry(const Layout& layout) : chunkBytes_(layout.chunkBytes), segments_(layout.segments) {
  uint64_t chunk = 0;
  uint64_t position = 0;
  for (const Segment& segment : segments_) {
    firstChunk_.push_back(chunk);
    start_.push_back(position);
    // The layout's decoder has proved that the sums fit.
    chunk += segment.bytes / chunkBytes_ + (segment.bytes % chunkBytes_ != 0 ? 1 : 0);
    position += segment.bytes;
  }
  firstChunk_.push_back(chunk);
  start_.push_back(position);
}

Geometry::Place Geometry::place(uint64_t chunk) const {
  const auto after = std::upper_bound(firstChunk_.begin(), firstChunk_.end(), chunk);
  const auto segment = static_cast<uint32_t>(after - firstChunk_.begin() - 1);
  const uint64_t offset = (chunk - firstChunk_[segment]) * chunkBytes_;
  const uint64_t bytes = std::min(chunkBytes_, segments_[segment].bytes - offset);
  return {segment, offset, static_cast<uint32_t>(bytes)};
}

uint64_t Geometry::linearEnd(uint64_t chunk) const {
  const Place at = place(chunk);
  return start_[at.segment] + at.offset + at.bytes;
}

}  // namespace weightline
