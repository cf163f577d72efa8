// The child's side of a stream: a parent that opens rightly, or not, and sends what it likes. Every pull ends with the object or a
// fault in words, and no chunk is marked whose bytes do not have the digest beside it.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "store/holding.h"
#include "stream_input.h"
#include "transport/stream_source.h"

namespace weightline::fuzz {

namespace {

constexpr const char* kId = "00000000000000000000000000000001";
constexpr int kStallMs = 2000;

const std::vector<uint8_t>& layoutBytes() {
  static const std::vector<uint8_t> bytes = encodeLayout(smallLayout());
  return bytes;
}

// What the right object's digest is.
DigestValue objectDigest() {
  const Geometry geometry(smallLayout());
  Digester digester(Algorithm::kSha256);
  digester.update(bytesOf("weightline-object-1"));
  digester.update(layoutBytes());
  for (uint64_t chunk = 0; chunk < geometry.chunkCount(); chunk++) {
    const Geometry::Place at = geometry.place(chunk);
    const DigestValue digest = digestOf(Algorithm::kXxh3, {smallBytes().data() + geometry.segmentStart(at.segment) + at.offset, at.bytes});
    digester.update(std::span(digest).first(16));
  }
  return digester.finish();
}

std::vector<Bytes> chunkFrames() {
  const Geometry geometry(smallLayout());
  std::vector<Bytes> frames;
  for (uint64_t chunk = 0; chunk < geometry.chunkCount(); chunk++) {
    const Geometry::Place at = geometry.place(chunk);
    const std::span<const uint8_t> payload(smallBytes().data() + geometry.segmentStart(at.segment) + at.offset, at.bytes);
    frames.push_back(frameBytes(FrameType::kChunk, chunk, payload, digestOf(Algorithm::kXxh3, payload)));
  }
  return frames;
}

// Plays the parent on one accepted connection.
void behave(int socket, const Session& session, const Secret& secret) {
  Hello hello{};
  if (session.opening != Opening::kNone) {
    if (!receiveAll(socket, hello)) return;
    Answer answer{};
    std::memcpy(answer.data(), "WLST", 4);
    putU16(answer.data() + 4, kMaxStreamVersion);
    const DigestValue proof = proofOf(secret, "parent", hello, answer);
    std::memcpy(answer.data() + 40, proof.data(), proof.size());
    if (session.opening == Opening::kOtherWord || session.opening == Opening::kOtherProof) {
      uint8_t& byte = answer[session.opening == Opening::kOtherProof ? 40 + session.at % 32u : session.at % answer.size()];
      byte = static_cast<uint8_t>(byte ^ session.change);
    }
    sendAll(socket, answer);
  }
  sendAll(socket, session.frames);
  ::shutdown(socket, SHUT_WR);
  drain(socket);
}

class Listener {
 public:
  Listener() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)), stop_(::eventfd(0, EFD_CLOEXEC)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 || ::listen(socket_.get(), 64) != 0 ||
        ::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      broken("no port for the parent");
    }
    endpoint_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }
  const std::string& endpoint() const { return endpoint_; }
  // Serves every connection until stop().
  void serve(const Session& session, const Secret& secret) {
    std::vector<std::thread> threads;
    while (true) {
      pollfd entries[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      ::poll(entries, 2, -1);
      const int accepted = ::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (accepted < 0 && entries[1].revents != 0) break;
      if (accepted < 0) continue;
      threads.emplace_back([accepted, &session, &secret] {
        const Descriptor socket(accepted);
        behave(socket.get(), session, secret);
      });
    }
    for (std::thread& thread : threads) thread.join();
    eventfd_t count = 0;
    ::eventfd_read(stop_.get(), &count);
  }
  // The child dials no more.
  void stop() const { ::eventfd_write(stop_.get(), 1); }

 private:
  Descriptor socket_, stop_;
  std::string endpoint_;
};

Listener& listener() {
  static Listener* const made = new Listener;
  return *made;
}

void checkHolding(const Holding& holding) {
  std::vector<uint8_t> buffer;
  for (uint64_t chunk = 0; chunk < holding.geometry().chunkCount(); chunk++) {
    if (holding.verified(chunk) && !holding.prove(chunk, buffer)) broken("chunk " + std::to_string(chunk) + " is marked and not proved");
  }
}

void pull(const StreamPeer& peer, bool knownLayout) {
  StreamSource source(peer);
  FillCounters counters;
  Cancel cancel;
  std::shared_ptr<Holding> holding;
  try {
    const std::vector<uint8_t> layout = knownLayout ? layoutBytes() : source.fetchLayout(counters, cancel);
    if (layout != layoutBytes()) broken("another layout was taken");
    holding = Holding::create(privateFolder(), kId, layout);
    holding->beginFill();
    RunCursor cursor(*holding);
    FillContext context{*holding, cursor, counters, cancel};
    source.fill(context);
    holding->endFill(nullptr);
    if (!holding->whole()) broken("a fill that ended left chunks out");
    const DigestValue theirs = source.fetchObjectDigest(counters, cancel);
    if (holding->objectDigest() == objectDigest() && theirs == objectDigest()) {
      for (uint64_t chunk = 0; chunk < holding->geometry().chunkCount(); chunk++) {
        const auto got = holding->bytes(chunk);
        const Geometry::Place at = holding->geometry().place(chunk);
        if (std::memcmp(got.data(), smallBytes().data() + holding->geometry().segmentStart(at.segment) + at.offset, at.bytes) != 0) broken("right digests over wrong bytes");
      }
    }
  } catch (const Fault& fault) {
    if (holding && !holding->whole()) holding->endFill(&fault);
    expectFault(fault, {Code::kUnavailable, Code::kCorrupt, Code::kPermissionDenied, Code::kRefused});
  }
  if (!holding) return;
  checkHolding(*holding);
  holding.reset();
  std::filesystem::remove_all(holdingFolder(privateFolder(), kId));
}

}  // namespace

Target describe() {
  Target target;
  target.name = "stream_child";
  target.guided = false;
  std::vector<Bytes> whole = {frameBytes(FrameType::kLayout, layoutBytes().size(), layoutBytes())};
  std::vector<Bytes> chunks = chunkFrames();
  chunks.push_back(frameBytes(FrameType::kObject, 1, objectDigest()));
  whole.insert(whole.end(), chunks.begin(), chunks.end());
  const size_t half = layoutBytes().size() / 2;
  std::vector<Bytes> pieces = {frameBytes(FrameType::kWaiting, 0, {}), frameBytes(FrameType::kLayout, layoutBytes().size(), std::span(layoutBytes()).first(half)),
                               frameBytes(FrameType::kLayout, layoutBytes().size(), std::span(layoutBytes()).subspan(half)), frameBytes(FrameType::kWaiting, 1, {})};
  pieces.insert(pieces.end(), chunks.begin(), chunks.end());
  const std::vector<Bytes> failed = {chunks[0], frameBytes(FrameType::kFailed, 0, bytesOf("Unavailable\nthe holding is being taken away"))};
  for (const Opening opening : {Opening::kRight, Opening::kOtherWord, Opening::kOtherProof, Opening::kNone}) target.seeds.push_back(sessionInput(0, opening, whole));
  target.seeds.push_back(sessionInput(0, Opening::kRight, pieces));
  target.seeds.push_back(sessionInput(1, Opening::kRight, chunks));
  target.seeds.push_back(sessionInput(1, Opening::kRight, failed));
  target.seeds.push_back(sessionInput(3, Opening::kRight, chunks));
  target.tokens = sessionTokens();
  target.mend = mendSession;
  std::filesystem::create_directories(privateFolder() + "/holdings");
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  const fuzz::Session session = fuzz::sessionOf({data, bytes});
  fuzz::Listener& listener = fuzz::listener();
  StreamPeer peer;
  peer.endpoint = listener.endpoint();
  peer.tickets.resize(session.choice % 4 == 3 ? 2 : 1);
  peer.layoutDigest = digestOf(Algorithm::kSha256, fuzz::layoutBytes());
  peer.layoutBytes = fuzz::layoutBytes().size();
  peer.totalBytes = fuzz::smallLayout().totalBytes();
  peer.stallMs = fuzz::kStallMs;
  std::thread parent([&] { listener.serve(session, peer.tickets[0].secret); });
  fuzz::pull(peer, session.choice % 2 == 1);
  listener.stop();
  parent.join();
  return 0;
}
