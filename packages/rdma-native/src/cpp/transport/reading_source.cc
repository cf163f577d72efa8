#include "transport/reading_source.h"

#include <algorithm>
#include <vector>

#include "transport/connection.h"

namespace weightline {

namespace {

// One read: large enough that system calls do not count, small enough to stay in the cache for the digest.
constexpr uint32_t kReadBytes = 1 << 20;

uint64_t nanosecondsSince(Clock::time_point start) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
}

}  // namespace

void ReadingSource::readAll(FillContext& context) {
  runThreads(threads_, context.cancel, [&](unsigned) { work(context); });
}

void ReadingSource::work(FillContext& context) {
  const Geometry& geometry = context.holding.geometry();
  const auto perRead = static_cast<uint32_t>(std::max<uint64_t>(1, kReadBytes / geometry.chunkBytes()));
  std::vector<uint8_t> buffer(perRead * geometry.chunkBytes());
  std::vector<DigestValue> digests;
  for (Run run = context.cursor.next(perRead); run.count > 0; run = context.cursor.next(perRead)) {
    context.cancel.check();
    const Geometry::Place first = geometry.place(run.first);
    const Geometry::Place last = geometry.place(run.first + run.count - 1);
    const std::span<uint8_t> bytes(buffer.data(), last.offset + last.bytes - first.offset);
    auto start = Clock::now();
    read(first.segment, bytes, first.offset);
    context.counters.wireNs += nanosecondsSince(start);
    context.counters.readBytes += bytes.size();
    start = Clock::now();
    digests.clear();
    for (uint32_t i = 0; i < run.count; i++) {
      const Geometry::Place at = geometry.place(run.first + i);
      digests.push_back(digestOf(context.holding.algorithm(), bytes.subspan(at.offset - first.offset, at.bytes)));
    }
    context.counters.verifyNs += nanosecondsSince(start);
    start = Clock::now();
    context.holding.writeChunks(run.first, bytes, digests);
    context.counters.storeNs += nanosecondsSince(start);
    context.counters.verifiedChunks += run.count;
  }
}

}  // namespace weightline
