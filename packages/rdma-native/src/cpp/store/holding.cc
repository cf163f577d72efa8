#include "store/holding.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace weightline {

namespace {

constexpr std::string_view kObjectLabel = "weightline-object-1";
constexpr const char* kFiles = "files/";

uint64_t bitmapBytes(uint64_t chunks) { return (chunks + 7) / 8; }

// A file of exactly `bytes` zero bytes with its pages taken, so that writing through a mapping never meets a full tmpfs.
void makeZeroFile(int folder, const char* name, uint64_t bytes) {
  const Descriptor file = files::openBelow(folder, name, O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (bytes == 0) return;
  if (::fallocate(file.get(), 0, 0, static_cast<off_t>(bytes)) != 0) {
    throw systemFault(errno, std::string("taking memory for ") + name).field("--store").wayOut("evict a model or enlarge the tmpfs");
  }
}

files::Mapping mapExact(int folder, const char* name, uint64_t bytes) {
  const Descriptor file = files::openBelow(folder, name, O_RDWR);
  const uint64_t actual = files::sizeOf(file.get());
  if (actual != bytes) {
    throw Fault(Code::kCorrupt, std::string(name) + " has " + std::to_string(actual) + " bytes, its layout asks for " + std::to_string(bytes))
        .field(name).value(std::to_string(actual)).limit(std::to_string(bytes));
  }
  return files::Mapping(file.get(), bytes, true);
}

}  // namespace

bool validHoldingId(std::string_view id) {
  return id.size() == 32 && std::all_of(id.begin(), id.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string holdingFolder(const std::string& store, const std::string& id) {
  if (!validHoldingId(id)) {
    throw Fault(Code::kInvalidArgument, "holding id \"" + id + "\" is not 32 lowercase hex digits").field("holdingId").value(id);
  }
  return store + "/holdings/" + id;
}

Holding::Holding(const std::string& store, const std::string& id)
    : id_(id), path_(holdingFolder(store, id)), geometry_(Layout{}) {}

Holding::~Holding() = default;

std::shared_ptr<Holding> Holding::create(const std::string& store, const std::string& id, std::span<const uint8_t> layout) {
  std::shared_ptr<Holding> holding(new Holding(store, id));
  if (::mkdir(holding->path_.c_str(), 0755) != 0 && errno != EEXIST) throw systemFault(errno, "making " + holding->path_);
  holding->folder_ = files::openFolder(holding->path_);
  const int folder = holding->folder_.get();
  const Layout header = decodeLayoutHeader(layout);
  const Geometry geometry(header);
  makeZeroFile(folder, "digests", geometry.chunkCount() * digestBytes(header.algorithm));
  makeZeroFile(folder, "verified", bitmapBytes(geometry.chunkCount()));
  // The layout's rename is what makes the holding be there.
  files::writeWhole(folder, "layout", layout);
  holding->load(layout);
  return holding;
}

std::shared_ptr<Holding> Holding::open(const std::string& store, const std::string& id) {
  std::shared_ptr<Holding> holding(new Holding(store, id));
  holding->folder_ = files::openFolder(holding->path_);
  const auto layout = files::readWhole(holding->folder_.get(), "layout", kMaxLayoutBytes);
  holding->load(layout);
  return holding;
}

void Holding::load(std::span<const uint8_t> layout) {
  const Layout header = decodeLayoutHeader(layout);
  layoutBytes_ = layout.size();
  layoutDigest_ = digestOf(Algorithm::kSha256, layout);
  algorithm_ = header.algorithm;
  digestBytes_ = digestBytes(header.algorithm);
  geometry_ = Geometry(header);
  digests_ = mapExact(folder_.get(), "digests", geometry_.chunkCount() * digestBytes_);
  verified_ = mapExact(folder_.get(), "verified", bitmapBytes(geometry_.chunkCount()));
  readers_.resize(geometry_.segmentCount());
  mappings_.resize(geometry_.segmentCount());
  uint64_t bytes = 0;
  for (uint64_t chunk = 0; chunk < geometry_.chunkCount(); chunk++) {
    if (verified(chunk)) bytes += geometry_.place(chunk).bytes;
  }
  verifiedBytes_ = bytes;
}

std::vector<uint8_t> Holding::readLayout() const { return files::readWhole(folder_.get(), "layout", kMaxLayoutBytes); }

bool Holding::verified(uint64_t chunk) const {
  const uint8_t byte = __atomic_load_n(verified_.data() + chunk / 8, __ATOMIC_ACQUIRE);
  return (byte >> (chunk % 8) & 1) != 0;
}

bool Holding::wholeSegment(uint32_t segment) const {
  for (uint64_t chunk = geometry_.firstChunk(segment); chunk < geometry_.firstChunk(segment + 1); chunk++) {
    if (!verified(chunk)) return false;
  }
  return true;
}

DigestValue Holding::digest(uint64_t chunk) const {
  DigestValue value{};
  std::memcpy(value.data(), digests_.data() + chunk * digestBytes_, digestBytes_);
  return value;
}

std::string Holding::segmentPath(uint32_t segment) const {
  const std::string& path = geometry_.segment(segment).path;
  if (!path.empty()) return kFiles + path;
  char number[16];
  std::snprintf(number, sizeof(number), "%04u", segment);
  return kFiles + std::string(number);
}

void Holding::beginFill(std::optional<uint32_t> only) {
  std::lock_guard lock(mutex_);
  if (allocator_) throw Fault(Code::kInUse, "holding " + id_ + " is being filled already").field("holdingId").value(id_);
  failed_.reset();
  writers_.clear();
  writers_.resize(geometry_.segmentCount());
  std::vector<int> descriptors;
  const auto first = only.value_or(0);
  const auto end = only ? *only + 1 : static_cast<uint32_t>(geometry_.segmentCount());
  for (uint32_t i = first; i < end; i++) {
    const std::string path = segmentPath(i);
    files::makeParents(folder_.get(), path);
    writers_[i] = files::openBelow(folder_.get(), path, O_RDWR | O_CREAT, 0644);
    const int fd = writers_[i].get();
    const uint64_t bytes = geometry_.segment(i).bytes;
    if (files::sizeOf(fd) != bytes && ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) throw systemFault(errno, "sizing " + path);
    descriptors.push_back(fd);
  }
  allocator_ = std::make_unique<Allocator>(geometry_, first, end, std::move(descriptors));
}

void Holding::endFill(const Fault* fault) {
  std::unique_ptr<Allocator> allocator;
  {
    std::lock_guard lock(mutex_);
    allocator = std::move(allocator_);
  }
  allocator.reset();  // joins its thread, which uses the writers
  std::lock_guard lock(mutex_);
  writers_.clear();
  if (fault != nullptr) failed_ = std::make_unique<Fault>(*fault);
  arrived_.notify_all();
}

void Holding::writeChunks(uint64_t first, std::span<const uint8_t> bytes, std::span<const DigestValue> digests) {
  const Geometry::Place at = geometry_.place(first);
  allocator_->ensure(geometry_.linearEnd(first + digests.size() - 1));
  files::writeFully(writers_[at.segment].get(), bytes.data(), bytes.size(), at.offset, geometry_.segment(at.segment).path);
  for (size_t i = 0; i < digests.size(); i++) {
    const uint64_t chunk = first + i;
    std::memcpy(digests_.data() + chunk * digestBytes_, digests[i].data(), digestBytes_);
    // Release: whoever sees the bit sees the digest; the bytes went through the kernel before.
    __atomic_fetch_or(verified_.data() + chunk / 8, static_cast<uint8_t>(1u << (chunk % 8)), __ATOMIC_RELEASE);
  }
  verifiedBytes_.fetch_add(bytes.size(), std::memory_order_relaxed);
  if (waiters_.load() > 0) {
    std::lock_guard lock(mutex_);
    arrived_.notify_all();
  }
}

void Holding::unmark(uint64_t chunk) {
  if (!verified(chunk)) return;
  __atomic_fetch_and(verified_.data() + chunk / 8, static_cast<uint8_t>(~(1u << (chunk % 8))), __ATOMIC_RELEASE);
  verifiedBytes_.fetch_sub(geometry_.place(chunk).bytes, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  completed_.reset();
}

DigestValue Holding::objectDigest() const {
  Digester digester(Algorithm::kSha256);
  digester.update({reinterpret_cast<const uint8_t*>(kObjectLabel.data()), kObjectLabel.size()});
  digester.update(readLayout());
  digester.update({digests_.data(), digests_.bytes()});
  return digester.finish();
}

DigestValue Holding::complete(bool* flagged) {
  const DigestValue digest = objectDigest();
  bool all = true;
  for (uint32_t i = 0; i < geometry_.segmentCount(); i++) {
    const Descriptor file = files::openBelow(folder_.get(), segmentPath(i), O_RDONLY);
    all = files::setImmutable(file.get(), true) && all;
  }
  if (flagged != nullptr) *flagged = all;
  markComplete(digest);
  return digest;
}

void Holding::markComplete(const DigestValue& objectDigest) {
  std::lock_guard lock(mutex_);
  completed_ = objectDigest;
  arrived_.notify_all();
}

std::optional<DigestValue> Holding::completedDigest() const {
  std::lock_guard lock(mutex_);
  return completed_;
}

void Holding::throwIfUnserved() const {
  if (!retired_.empty()) throw Fault(Code::kUnavailable, retired_).field("holding").value(id_);
  if (failed_) throw *failed_;
}

bool Holding::waitFor(uint64_t chunk, int waitMs) {
  {
    std::lock_guard lock(mutex_);
    if (!retired_.empty()) throwIfUnserved();
  }
  if (verified(chunk)) return true;
  std::unique_lock lock(mutex_);
  waiters_++;
  arrived_.wait_for(lock, std::chrono::milliseconds(waitMs), [&] { return verified(chunk) || failed_ || !retired_.empty(); });
  waiters_--;
  if (verified(chunk) && retired_.empty()) return true;
  throwIfUnserved();
  return false;
}

bool Holding::waitComplete(int waitMs) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, std::chrono::milliseconds(waitMs), [&] { return completed_ || failed_ || !retired_.empty(); });
  throwIfUnserved();
  return completed_.has_value();
}

int Holding::readDescriptor(uint32_t segment) const {
  std::lock_guard lock(mutex_);
  if (!readers_[segment].valid()) readers_[segment] = files::openBelow(folder_.get(), segmentPath(segment), O_RDONLY);
  return readers_[segment].get();
}

std::span<const uint8_t> Holding::bytes(uint64_t chunk) {
  const Geometry::Place at = geometry_.place(chunk);
  const int fd = readDescriptor(at.segment);
  std::lock_guard lock(mutex_);
  if (!mappings_[at.segment].valid()) {
    const uint64_t bytes = geometry_.segment(at.segment).bytes;
    if (files::sizeOf(fd) < bytes) throw Fault(Code::kCorrupt, segmentPath(at.segment) + " is shorter than its layout says").field(segmentPath(at.segment));
    mappings_[at.segment] = files::Mapping(fd, bytes, false);
  }
  return {mappings_[at.segment].data() + at.offset, at.bytes};
}

void Holding::beginRelay() {
  int64_t origin = 0;
  originHeardNs_.compare_exchange_strong(origin, std::chrono::steady_clock::now().time_since_epoch().count());
}

void Holding::heardOfOrigin(std::chrono::steady_clock::time_point at) {
  const int64_t heard = at.time_since_epoch().count();
  int64_t before = originHeardNs_.load();
  while (before < heard && !originHeardNs_.compare_exchange_weak(before, heard)) {
  }
}

std::chrono::milliseconds Holding::sinceOrigin() const {
  const int64_t heard = originHeardNs_.load();
  if (heard == 0) return std::chrono::milliseconds(0);
  const auto since = std::chrono::steady_clock::now().time_since_epoch() - std::chrono::steady_clock::duration(heard);
  return std::max(std::chrono::milliseconds(0), std::chrono::duration_cast<std::chrono::milliseconds>(since));
}

void Holding::retire(const std::string& why) {
  std::lock_guard lock(mutex_);
  retired_ = why;
  arrived_.notify_all();
}

void Holding::unretire() {
  std::lock_guard lock(mutex_);
  retired_.clear();
}

bool Holding::prove(uint64_t chunk, std::vector<uint8_t>& buffer) const {
  const Geometry::Place at = geometry_.place(chunk);
  // A file that is gone has no right bytes: it is filled again.
  if (!files::existsBelow(folder_.get(), segmentPath(at.segment))) return false;
  buffer.resize(geometry_.chunkBytes());
  const size_t got = files::readFully(readDescriptor(at.segment), buffer.data(), at.bytes, at.offset, segmentPath(at.segment));
  return got == at.bytes && digestOf(algorithm_, {buffer.data(), at.bytes}) == digest(chunk);
}

bool Holding::allFlagged() const {
  for (uint32_t i = 0; i < geometry_.segmentCount(); i++) {
    const std::string path = segmentPath(i);
    if (!files::existsBelow(folder_.get(), path)) return false;
    const Descriptor file = files::openBelow(folder_.get(), path, O_RDONLY);
    if (!files::isImmutable(file.get()) || files::sizeOf(file.get()) != geometry_.segment(i).bytes) return false;
  }
  return true;
}

void Holding::setFlags(bool immutable) {
  for (uint32_t i = 0; i < geometry_.segmentCount(); i++) {
    const std::string path = segmentPath(i);
    if (!files::existsBelow(folder_.get(), path)) continue;
    const Descriptor file = files::openBelow(folder_.get(), path, O_RDONLY);
    files::setImmutable(file.get(), immutable);
  }
}

}  // namespace weightline
