// A holding's files as the mover works on them.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/fault.h"
#include "digest/digest.h"
#include "store/allocator.h"
#include "store/files.h"
#include "store/geometry.h"

namespace weightline {

// True for 32 lowercase hex digits.
bool validHoldingId(std::string_view id);
// <store>/holdings/<id>.
std::string holdingFolder(const std::string& store, const std::string& id);

// One holding, open. Shared by the threads that fill it and those that serve it; every method may be called from any
// thread unless it says otherwise. Files stay open and mapped until the last owner lets it go.
class Holding {
 public:
  // Makes the folder with its layout, an empty bitmap and empty digests. `layout` has been decoded by the caller.
  static std::shared_ptr<Holding> create(const std::string& store, const std::string& id, std::span<const uint8_t> layout);
  // Opens what create made, whatever was written since. Throws NotFound, or Corrupt for files of wrong size or content.
  static std::shared_ptr<Holding> open(const std::string& store, const std::string& id);
  ~Holding();

  const std::string& id() const { return id_; }
  const Geometry& geometry() const { return geometry_; }
  Algorithm algorithm() const { return algorithm_; }
  const DigestValue& layoutDigest() const { return layoutDigest_; }
  uint64_t layoutBytes() const { return layoutBytes_; }
  std::vector<uint8_t> readLayout() const;

  bool verified(uint64_t chunk) const;
  uint64_t verifiedBytes() const { return verifiedBytes_.load(std::memory_order_relaxed); }
  bool whole() const { return verifiedBytes() == geometry_.totalBytes(); }
  // True when every chunk of the segment is verified.
  bool wholeSegment(uint32_t segment) const;
  DigestValue digest(uint64_t chunk) const;

  // Filling. beginFill opens the segments for writing, all or one of them, and starts allocating; one fill at a time.
  void beginFill(std::optional<uint32_t> only = std::nullopt);
  // Closes the writers. Children that wait are told when `fault` is given.
  void endFill(const Fault* fault);
  // Writes consecutive proved chunks of one segment and marks them. `digests` has one for each.
  void writeChunks(uint64_t first, std::span<const uint8_t> bytes, std::span<const DigestValue> digests);
  // Forgets a chunk: it will be filled again. Only while no fill runs.
  void unmark(uint64_t chunk);

  // Completing: all chunks are verified. Sets the immutable flags and returns the object digest; `flagged` tells whether
  // the kernel let us set them.
  DigestValue complete(bool* flagged);
  // SHA-256("weightline-object-1", layout, chunk digests in order).
  DigestValue objectDigest() const;
  std::optional<DigestValue> completedDigest() const;
  // Declares a complete holding complete without work (it was checked).
  void markComplete(const DigestValue& objectDigest);

  // Serving. Waits up to `waitMs` for a chunk; false when it is not there yet. Throws the fault of a failed fill,
  // or Unavailable when the holding is being taken away.
  bool waitFor(uint64_t chunk, int waitMs);
  bool waitComplete(int waitMs);
  // Bytes of a verified chunk in a read-only mapping that lives as long as the holding.
  std::span<const uint8_t> bytes(uint64_t chunk);
  // Of a holding that is filled from a peer: when its origin was last heard of, by way of the parents. The origin's own is
  // always heard of. What relays only tell each other would never end otherwise.
  void beginRelay();
  bool relay() const { return originHeardNs_.load() != 0; }
  void heardOfOrigin(std::chrono::steady_clock::time_point at);
  std::chrono::milliseconds sinceOrigin() const;
  // Wakes everyone and refuses further serving: evict, revoke.
  void retire(const std::string& why);
  void unretire();

  // Reads a chunk from its file (not through the mapping, so that a truncated file is an error and no signal).
  // False when the bytes do not have the digest that is recorded.
  bool prove(uint64_t chunk, std::vector<uint8_t>& buffer) const;
  // True when every segment's file has its size and carries the immutable flag.
  bool allFlagged() const;
  void setFlags(bool immutable);

 private:
  Holding(const std::string& store, const std::string& id);
  void load(std::span<const uint8_t> layout);
  std::string segmentPath(uint32_t segment) const;
  int readDescriptor(uint32_t segment) const;
  void throwIfUnserved() const;

  const std::string id_, path_;
  Descriptor folder_;
  uint64_t layoutBytes_ = 0;
  DigestValue layoutDigest_{};
  Algorithm algorithm_ = Algorithm::kXxh3;
  Geometry geometry_;
  size_t digestBytes_ = 16;

  files::Mapping digests_, verified_;
  std::atomic<uint64_t> verifiedBytes_{0};

  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::atomic<int> waiters_{0};
  std::atomic<int64_t> originHeardNs_{0};  // steady clock; 0: this is the origin
  std::vector<Descriptor> writers_;
  mutable std::vector<Descriptor> readers_;
  std::vector<files::Mapping> mappings_;
  std::unique_ptr<Allocator> allocator_;
  std::unique_ptr<Fault> failed_;
  std::string retired_;
  std::optional<DigestValue> completed_;
};

}  // namespace weightline
