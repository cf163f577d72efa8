#include "transport/stream_source.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "base/utf8.h"
#include "layout/layout.h"

namespace weightline {

namespace {

constexpr std::chrono::milliseconds kDialTimeout{3000};
// Two requests of about 4 MiB keep the wire full while one is asked for anew; more would only be thrown away when the
// stream ends early.
constexpr uint64_t kRequestBytes = 4 << 20;
constexpr size_t kRequestsInFlight = 2;
// How long a child that refuses a chunk waits for the parent to hear it.
constexpr std::chrono::milliseconds kRefusalTime{1000};

uint64_t nanoseconds(Clock::duration duration) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count());
}

}  // namespace

// One opened stream.
class StreamSource::Stream {
 public:
  Stream(const StreamPeer& peer, const StreamTicket& ticket, const Cancel& cancel)
      : peer_(peer), connection_(Connection::dial(peer.endpoint, kDialTimeout, cancel)) {
    openAsChild(connection_, ticket.id, ticket.secret, cancel);
    heard_ = Clock::now();
  }

  void sendControl(FrameType type, uint64_t number, std::span<const uint8_t> payload, const Cancel& cancel, const DigestValue& digest = {}) {
    connection_.sendFrame({type, 0, number, digest}, payload, peer_.stallMs, cancel);
  }

  // Tells the parent that a chunk is wrong, and waits until it has heard it: closing a socket with unread bytes would reset
  // the connection and take the word away.
  void refuse(uint64_t chunk, const DigestValue& digest) {
    // The fill's own wish to stop must not keep the word from being said.
    const Cancel never;
    std::vector<uint8_t> rest(kMaxDataPayloadBytes);
    const auto deadline = Clock::now() + kRefusalTime;
    try {
      connection_.sendFrame({FrameType::kRefused, 0, chunk, digest}, {}, static_cast<int>(kRefusalTime.count()), never);
      while (Clock::now() < deadline) {
        iovec piece{rest.data(), rest.size()};
        connection_.receiveSome(std::span(&piece, 1), kPollMs);
      }
    } catch (const Fault&) {
      // The parent has closed: it heard.
    }
  }

  // The next frame's header that is no WAITING. Its payload, if any, is still to be received.
  FrameHeader next(FillCounters& counters, const Cancel& cancel) {
    while (true) {
      receiveInto({header_.data() + headerBytes_, kFrameHeaderBytes - headerBytes_}, counters, cancel);
      headerBytes_ = 0;
      FrameHeader header;
      try {
        header = decodeFrame(header_);
      } catch (const Fault& fault) {
        throw DistrustFault(fault);
      }
      if (header.type == FrameType::kWaiting) {
        parentWaits_ = true;
        hearOfOrigin(header);
        continue;
      }
      parentWaits_ = false;
      if (header.type == FrameType::kFailed) throwFailed(header, counters, cancel);
      return header;
    }
  }

  // From now on what is heard of the origin counts for the holding.
  void fillInto(Holding& holding) { holding_ = &holding; }

  // Exactly the payload. What the kernel has beyond it of the next header is taken along: one call for each chunk.
  void receivePayload(std::span<uint8_t> payload, FillCounters& counters, const Cancel& cancel) {
    while (!payload.empty()) {
      iovec pieces[2] = {{payload.data(), payload.size()}, {header_.data(), kFrameHeaderBytes}};
      const size_t n = receiveStep(pieces, counters, cancel);
      if (n >= payload.size()) {
        headerBytes_ = n - payload.size();
        return;
      }
      payload = payload.subspan(n);
    }
  }

 private:
  void receiveInto(std::span<uint8_t> bytes, FillCounters& counters, const Cancel& cancel) {
    while (!bytes.empty()) {
      iovec piece{bytes.data(), bytes.size()};
      bytes = bytes.subspan(receiveStep(std::span(&piece, 1), counters, cancel));
    }
  }

  size_t receiveStep(std::span<iovec> pieces, FillCounters& counters, const Cancel& cancel) {
    const auto start = Clock::now();
    while (true) {
      cancel.check();
      const size_t n = connection_.receiveSome(pieces, kPollMs);
      const auto now = Clock::now();
      if (n > 0) {
        (parentWaits_ ? counters.parentNs : counters.wireNs) += nanoseconds(now - start);
        counters.networkBytes += n;
        heard_ = now;
        return n;
      }
      if (now - heard_ > std::chrono::milliseconds(peer_.stallMs)) {
        throw Fault(Code::kUnavailable, "the peer " + peer_.endpoint + " said nothing for " + std::to_string(peer_.stallMs) + " ms")
            .field("peer").value(peer_.endpoint).limit(std::to_string(peer_.stallMs) + " ms");
      }
    }
  }

  // A parent that waits tells how long ago it heard of the origin. Relays that wait for each other hear of nobody.
  void hearOfOrigin(const FrameHeader& header) {
    const auto since = std::chrono::milliseconds(std::min<uint64_t>(getU64(header.digest.data()), kMaxOriginAgeMs));
    if (holding_ != nullptr) holding_->heardOfOrigin(Clock::now() - since);
    if (since > kOriginSilence) {
      throw Fault(Code::kUnavailable, "the peer " + peer_.endpoint + " waits for an origin that was last heard of " + std::to_string(since.count()) + " ms ago")
          .field("peer").value(peer_.endpoint).limit(std::to_string(kOriginSilence.count()) + " ms");
    }
  }

  [[noreturn]] void throwFailed(const FrameHeader& header, FillCounters& counters, const Cancel& cancel) {
    std::string text(header.payloadBytes, '\0');
    receivePayload({reinterpret_cast<uint8_t*>(text.data()), text.size()}, counters, cancel);
    const size_t line = text.find('\n');
    const std::string why = line == std::string::npos ? text : text.substr(line + 1);
    throw Fault(Code::kUnavailable, "the peer " + peer_.endpoint + " cannot go on: " + (validUtf8(why) ? why : "its reason is not UTF-8"))
        .field("peer").value(peer_.endpoint);
  }

  const StreamPeer& peer_;
  Holding* holding_ = nullptr;
  Connection connection_;
  FrameBytes header_{};
  size_t headerBytes_ = 0;
  bool parentWaits_ = false;
  Clock::time_point heard_;
};

namespace {

DistrustFault lied(const StreamPeer& peer, const std::string& what, const std::string& value, const std::string& limit) {
  DistrustFault fault(Code::kCorrupt, "the peer " + peer.endpoint + " sent " + what);
  fault.field("peer").value(value).limit(limit);
  return fault;
}

}  // namespace

StreamSource::Stream& StreamSource::firstStream(const Cancel& cancel) {
  if (!first_) {
    if (peer_.tickets.empty()) throw Fault(Code::kInvalidArgument, "a pull needs at least one ticket").field("tickets");
    first_ = std::make_shared<Stream>(peer_, peer_.tickets[0], cancel);
  }
  return *first_;
}

std::vector<uint8_t> StreamSource::fetchLayout(FillCounters& counters, const Cancel& cancel) {
  if (peer_.layoutBytes > kMaxLayoutBytes) throw lied(peer_, "a layout that is too large", std::to_string(peer_.layoutBytes), std::to_string(kMaxLayoutBytes));
  Stream& stream = firstStream(cancel);
  stream.sendControl(FrameType::kGetLayout, 0, {}, cancel);
  std::vector<uint8_t> layout;
  while (layout.size() < peer_.layoutBytes) {
    const FrameHeader header = stream.next(counters, cancel);
    if (header.type != FrameType::kLayout || header.number != peer_.layoutBytes || header.payloadBytes == 0 ||
        header.payloadBytes > peer_.layoutBytes - layout.size()) {
      throw lied(peer_, "a layout of another size than it announced", std::to_string(header.number), std::to_string(peer_.layoutBytes));
    }
    const size_t before = layout.size();
    layout.resize(before + header.payloadBytes);
    stream.receivePayload(std::span(layout).subspan(before), counters, cancel);
  }
  if (digestOf(Algorithm::kSha256, layout) != peer_.layoutDigest) {
    throw lied(peer_, "a layout that does not have the announced digest", toHex(digestOf(Algorithm::kSha256, layout)), toHex(peer_.layoutDigest));
  }
  try {
    const Layout decoded = decodeLayout(layout);
    if (decoded.totalBytes() != peer_.totalBytes) {
      throw lied(peer_, "a layout of another object size than it announced", std::to_string(decoded.totalBytes()), std::to_string(peer_.totalBytes));
    }
  } catch (const DistrustFault&) {
    throw;
  } catch (const Fault& fault) {
    // A newer peer's layout is no lie.
    if (fault.code() == Code::kRefused) throw;
    throw DistrustFault(fault);
  }
  return layout;
}

namespace {

// Chunks of outstanding requests, in the order in which they must come.
class Expected {
 public:
  void add(const Run& run) { runs_.push_back(run); }
  size_t requests() const { return runs_.size(); }
  bool empty() const { return runs_.empty(); }
  uint64_t front() const { return runs_.front().first; }
  void pop() {
    Run& run = runs_.front();
    run.first++;
    if (--run.count == 0) runs_.pop_front();
  }

 private:
  std::deque<Run> runs_;
};

}  // namespace

void StreamSource::fill(FillContext& context) {
  context.holding.beginRelay();
  firstStream(context.cancel);
  const Geometry& geometry = context.holding.geometry();
  const auto perRequest = static_cast<uint32_t>(std::clamp<uint64_t>(kRequestBytes / geometry.chunkBytes(), 1, kMaxChunksPerGet));
  std::mutex mutex;
  std::function<void()> sayRefused;
  const auto work = [&](unsigned index) {
    const auto stream = index == 0 ? first_ : std::make_shared<Stream>(peer_, peer_.tickets[index], context.cancel);
    stream->fillInto(context.holding);
    std::vector<uint8_t> buffer(geometry.chunkBytes());
    Expected expected;
    while (true) {
      while (expected.requests() < kRequestsInFlight) {
        const Run run = context.cursor.next(perRequest);
        if (run.count == 0) break;
        std::array<uint8_t, 4> count{};
        putU32(count.data(), run.count);
        stream->sendControl(FrameType::kGet, run.first, count, context.cancel);
        expected.add(run);
      }
      if (expected.empty()) return;
      const FrameHeader header = stream->next(context.counters, context.cancel);
      const uint64_t chunk = expected.front();
      if (header.type != FrameType::kChunk || header.number != chunk) {
        throw lied(peer_, "a chunk that was not asked for", std::to_string(header.number), std::to_string(chunk));
      }
      const uint32_t bytes = geometry.place(chunk).bytes;
      if (header.payloadBytes != bytes) {
        throw lied(peer_, "chunk " + std::to_string(chunk) + " with a wrong length", std::to_string(header.payloadBytes), std::to_string(bytes));
      }
      const std::span<uint8_t> payload(buffer.data(), bytes);
      stream->receivePayload(payload, context.counters, context.cancel);
      auto start = Clock::now();
      const DigestValue digest = digestOf(context.holding.algorithm(), payload);
      context.counters.verifyNs += nanoseconds(Clock::now() - start);
      if (digest != header.digest) {
        context.counters.refusedChunks++;
        std::lock_guard lock(mutex);
        sayRefused = [stream, chunk, digest] { stream->refuse(chunk, digest); };
        throw lied(peer_, "chunk " + std::to_string(chunk) + " with bytes that do not have its digest", toHex(digest), toHex(header.digest));
      }
      start = Clock::now();
      context.holding.writeChunks(chunk, payload, std::span(&digest, 1));
      context.counters.storeNs += nanoseconds(Clock::now() - start);
      context.counters.verifiedChunks++;
      context.holding.heardOfOrigin(Clock::now());
      expected.pop();
    }
  };
  try {
    runThreads(static_cast<unsigned>(peer_.tickets.size()), context.cancel, work);
  } catch (...) {
    // Only now: the parent ends all its streams when it finds its damage, and their end must not hide the reason.
    if (sayRefused) sayRefused();
    throw;
  }
}

DigestValue StreamSource::fetchObjectDigest(FillCounters& counters, const Cancel& cancel) {
  Stream& stream = firstStream(cancel);
  stream.sendControl(FrameType::kGetObject, 0, {}, cancel);
  const FrameHeader header = stream.next(counters, cancel);
  if (header.type != FrameType::kObject || header.number != 1 || header.payloadBytes != 32) {
    throw lied(peer_, "no object digest when asked for it", std::to_string(header.payloadBytes), "32");
  }
  DigestValue digest{};
  stream.receivePayload(digest, counters, cancel);
  return digest;
}

}  // namespace weightline
