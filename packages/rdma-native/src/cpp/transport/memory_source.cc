#include "transport/memory_source.h"

#include <algorithm>

#include "store/files.h"

namespace weightline {

std::vector<Gap> gapsOf(const Layout& layout, uint32_t segment) {
  std::vector<Gap> taken;
  for (uint32_t i = 0; i < layout.items.size(); i++) {
    const Item& item = layout.items[i];
    if (item.segment == segment && item.bytes > 0 && item.alias == i) taken.push_back({item.offset, item.offset + item.bytes});
  }
  std::sort(taken.begin(), taken.end(), [](const Gap& a, const Gap& b) { return a.begin < b.begin; });
  std::vector<Gap> gaps;
  uint64_t at = 0;
  for (const Gap& item : taken) {
    if (item.begin > at) gaps.push_back({at, item.begin});
    at = std::max(at, item.end);
  }
  if (at < layout.segments[segment].bytes) gaps.push_back({at, layout.segments[segment].bytes});
  return gaps;
}

void MemorySource::read(uint32_t segment, std::span<uint8_t> into, uint64_t offset) {
  const std::string what = "segment " + std::to_string(segment_) + " of the offer";
  if (segment != segment_) throw Fault(Code::kInternal, what + " was asked for segment " + std::to_string(segment));
  if (files::readFully(memory_.get(), into.data(), into.size(), offset, what) < into.size()) {
    throw Fault(Code::kRefused, what + " ends before byte " + std::to_string(offset + into.size())).field("segment").value(std::to_string(segment_));
  }
  checkGaps(into, offset);
}

void MemorySource::checkGaps(std::span<const uint8_t> bytes, uint64_t offset) const {
  auto gap = std::lower_bound(gaps_.begin(), gaps_.end(), offset, [](const Gap& g, uint64_t at) { return g.end <= at; });
  for (; gap != gaps_.end() && gap->begin < offset + bytes.size(); gap++) {
    const uint64_t begin = std::max(gap->begin, offset) - offset, end = std::min(gap->end, offset + bytes.size()) - offset;
    const auto piece = bytes.subspan(begin, end - begin);
    const auto wrong = std::find_if(piece.begin(), piece.end(), [](uint8_t byte) { return byte != 0; });
    if (wrong == piece.end()) continue;
    const std::string at = std::to_string(offset + begin + static_cast<uint64_t>(wrong - piece.begin()));
    throw Fault(Code::kRefused, "byte " + at + " of segment " + std::to_string(segment_) + " belongs to no tensor and is not zero")
        .field("segment").value(std::to_string(segment_)).limit("zeros between tensors").wayOut("write each tensor at its offset in the layout, and nothing else");
  }
}

}  // namespace weightline
